from __future__ import annotations

import math
from typing import get_args

import numpy as np
import pytest
import torch
from scipy.spatial.distance import cosine, jensenshannon
from scipy.special import rel_entr
from scipy.special import softmax as scipy_softmax
from torch.nn import functional as F

from probekd.config import DivergenceName, HiddenLossName
from probekd.errors import DataError
from probekd.student.losses import DIVERGENCES, HIDDEN_LOSSES, confidence_weights, mix, row_losses
from probekd.student.losses.base import Divergence, log_probs

INF = math.inf
ORACLES = {
    "forward_kl": lambda p, q: rel_entr(p, q).sum(-1),
    "reverse_kl": lambda p, q: rel_entr(q, p).sum(-1),
    "jensen_shannon": lambda p, q: jensenshannon(p, q, axis=-1) ** 2,
}
every_divergence = pytest.mark.parametrize("divergence", DIVERGENCES.values(), ids=DIVERGENCES)


def normal(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def loss(
    logits: torch.Tensor,
    target: torch.Tensor,
    *,
    divergence: Divergence = DIVERGENCES["forward_kl"],
    gold: float = 0.0,
    soft: float = 1.0,
    temperature: float = 1.0,
    answers: torch.Tensor | None = None,
) -> torch.Tensor:
    n = len(logits)
    answers = torch.zeros(n, dtype=torch.long) if answers is None else answers
    weights = torch.full((n,), gold), torch.full((n,), soft)
    return row_losses(logits, target, answers, *weights, divergence=divergence, temperature=temperature)


def test_the_config_names_every_loss() -> None:
    assert set(get_args(DivergenceName)) == set(DIVERGENCES)
    assert set(get_args(HiddenLossName)) == set(HIDDEN_LOSSES)


@pytest.mark.parametrize("temperature", [0.5, 1.0, 4.0])
@pytest.mark.parametrize("name", DIVERGENCES)
def test_divergences_equal_scipy(name: DivergenceName, temperature: float) -> None:
    student, target = normal(2, 6, 5)
    found = loss(student, target, divergence=DIVERGENCES[name], temperature=temperature)
    p, q = (scipy_softmax(x.double().numpy() / temperature, axis=-1) for x in (target, student))
    np.testing.assert_allclose(found, temperature**2 * ORACLES[name](p, q), rtol=2e-4, atol=1e-6)


def test_forward_kl_by_hand() -> None:
    target, student = torch.log(torch.tensor([[0.75, 0.25]])), torch.log(torch.tensor([[0.5, 0.5]]))
    by_hand = 0.75 * math.log(0.75 / 0.5) + 0.25 * math.log(0.25 / 0.5)
    assert loss(student, target).tolist() == pytest.approx([by_hand], rel=1e-6)


@every_divergence
def test_losses_are_in_float32_whatever_comes_in(divergence: Divergence) -> None:
    half = normal(3, 4).bfloat16()
    found = loss(half, normal(3, 4, seed=1), divergence=divergence, gold=0.5)
    torch.testing.assert_close(found, loss(half.float(), normal(3, 4, seed=1), divergence=divergence, gold=0.5))


@every_divergence
def test_divergences_are_zero_at_the_target_and_never_below(divergence: Divergence) -> None:
    target = normal(50, 4) * 3
    assert loss(target, target, divergence=divergence).abs().max() < 1e-6
    assert loss(target + normal(50, 4, seed=1) * 1e-3, target, divergence=divergence).min() > -1e-6


@every_divergence
def test_absent_options_take_no_part(divergence: Divergence) -> None:
    student = torch.tensor([[0.3, -1.0, 2.0]], requires_grad=True)
    wide_student = torch.tensor([[0.3, -1.0, 2.0, -INF, -INF]], requires_grad=True)
    target, wide_target = torch.tensor([[1.0, 0.5, -0.2]]), torch.tensor([[1.0, 0.5, -0.2, -INF, -INF]])
    narrow, wide = (
        loss(x, t, divergence=divergence, gold=0.3, temperature=2.0)
        for x, t in ((student, target), (wide_student, wide_target))
    )
    torch.testing.assert_close(wide, narrow)
    (a,) = torch.autograd.grad(narrow.sum(), student)
    (b,) = torch.autograd.grad(wide.sum(), wide_student)
    torch.testing.assert_close(b[:, :3], a)
    assert b[:, 3:].tolist() == [[0.0, 0.0]]


def test_one_hot_targets_give_cross_entropy() -> None:
    student, target = torch.tensor([[0.3, -1.0, 2.0]]), torch.tensor([[-INF, 0.0, -INF]])
    torch.testing.assert_close(loss(student, target), F.cross_entropy(student, torch.tensor([1]))[None])


def test_jensen_shannon_is_at_most_log_2() -> None:
    opposite = loss(
        torch.tensor([[0.0, -200.0]]), torch.tensor([[-INF, 0.0]]), divergence=DIVERGENCES["jensen_shannon"]
    )
    assert opposite.tolist() == pytest.approx([math.log(2)])


def test_reverse_kl_leaves_out_what_forward_kl_must_cover() -> None:
    """A target with two peaks: one of them alone costs reverse KL log 2, and forward KL far more."""
    two_peaks, one_peak = torch.tensor([[5.0, 5.0, -5.0]]), torch.tensor([[9.0, -9.0, -9.0]])
    assert loss(one_peak, two_peaks, divergence=DIVERGENCES["reverse_kl"]).item() == pytest.approx(
        math.log(2), abs=1e-3
    )
    assert loss(one_peak, two_peaks).item() > 5


def test_row_losses_by_hand() -> None:
    # T = 2 softens logits (2 log 3, 0) to the probabilities (3/4, 1/4). The second row has a target alone.
    student, target = torch.zeros(2, 2), torch.tensor([[2 * math.log(3), 0.0], [2 * math.log(3), 0.0]])
    kl = 0.75 * math.log(1.5) + 0.25 * math.log(0.5)
    found = row_losses(
        student,
        target,
        torch.tensor([1, 0]),
        torch.tensor([0.3, 0.0]),
        torch.tensor([0.7, 1.0]),
        divergence=DIVERGENCES["forward_kl"],
        temperature=2.0,
    )
    assert found.tolist() == pytest.approx([0.3 * math.log(2) + 0.7 * 4 * kl, 4 * kl], rel=1e-6)


@pytest.mark.parametrize("alpha", [0.0, 0.4, 1.0])
def test_alpha_is_the_gold_labels_share_on_labelled_rows_alone(alpha: float) -> None:
    labelled, pool = mix(alpha=alpha, labelled=True), mix(alpha=alpha, labelled=False)
    assert (labelled.gold, labelled.soft) == (alpha, 1 - alpha)
    assert (pool.gold, pool.soft) == (0.0, 1.0)


def test_confidence_weighs_the_target_and_not_the_label() -> None:
    row = mix(alpha=0.4, labelled=True, confidence=0.5)
    assert (row.gold, row.soft) == (0.4, 0.3)


def test_softening_does_not_shrink_the_gradient() -> None:
    student, target = normal(4, 3).requires_grad_(), normal(4, 3, seed=2)
    (gradient,) = torch.autograd.grad(loss(student, target, temperature=3.0).sum(), student)
    # d/dz of T^2 KL is T (q - p).
    torch.testing.assert_close(gradient, 3.0 * (F.softmax(student / 3, -1) - F.softmax(target / 3, -1)).detach())


def test_a_row_weighs_the_same_with_two_options_as_with_five() -> None:
    # The same two-option problem, written once with three further options that student and target both rule out.
    student = torch.tensor([[1.0, -1.0, -INF, -INF, -INF], [1.0, -1.0, -60.0, -60.0, -60.0]], requires_grad=True)
    target = torch.tensor([[-0.5, 0.5, -INF, -INF, -INF], [-0.5, 0.5, -60.0, -60.0, -60.0]])
    (gradient,) = torch.autograd.grad(loss(student, target, gold=0.5, soft=0.5).sum(), student)
    torch.testing.assert_close(gradient[0], gradient[1])
    assert gradient[0, 0].abs() > 0.01


def test_confidence_is_one_minus_the_share_of_the_greatest_entropy() -> None:
    sure, even = np.array([-INF, 0.0, -INF]), np.zeros(4)
    half = np.log([0.75, 0.25])
    kept = 1 + (0.75 * math.log(0.75) + 0.25 * math.log(0.25)) / math.log(2)
    mean = (1 + 0 + kept) / 3
    np.testing.assert_allclose(confidence_weights([sure, even, half]), [1 / mean, 0, kept / mean], atol=1e-12)


def test_confidence_weights_have_mean_one_and_need_a_sure_target() -> None:
    targets = [np.random.default_rng(i).normal(size=2 + i % 3) for i in range(50)]
    assert confidence_weights(targets).mean() == pytest.approx(1)
    with pytest.raises(DataError, match="leave confidence_weights off"):
        confidence_weights([np.zeros(3)] * 4)


def test_hidden_losses_equal_numpy() -> None:
    student, teacher = normal(2, 5, 7)
    by_row = zip(student.double().numpy(), teacher.double().numpy(), strict=True)
    wanted = np.array([(cosine(s, t), np.mean((s - t) ** 2)) for s, t in by_row]).T
    for found, oracle in zip(
        (HIDDEN_LOSSES[name](student, teacher) for name in ("cosine", "mse")), wanted, strict=True
    ):
        np.testing.assert_allclose(found, oracle, rtol=1e-4)


def test_log_probs_of_an_absent_option_are_finite_and_worth_nothing() -> None:
    found = log_probs(torch.tensor([[0.0, -INF]]), 0.5)
    assert found.isfinite().all() and found.exp().tolist() == [[1.0, 0.0]]
