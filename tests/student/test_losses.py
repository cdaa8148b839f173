from __future__ import annotations

import math

import pytest
import torch
from torch.nn import functional as F

from probekd.student.losses import UNLABELLED, distillation_loss, soft_kl

INF = math.inf


def test_soft_kl_by_hand() -> None:
    target = torch.log(torch.tensor([[0.75, 0.25]]))
    student = torch.log(torch.tensor([[0.5, 0.5]]))
    by_hand = 0.75 * math.log(0.75 / 0.5) + 0.25 * math.log(0.25 / 0.5)
    assert soft_kl(student, target, 1.0).tolist() == pytest.approx([by_hand], rel=1e-6)


def test_soft_kl_is_in_float32_whatever_comes_in() -> None:
    assert soft_kl(torch.zeros(1, 2, dtype=torch.bfloat16), torch.zeros(1, 2), 1.0).dtype == torch.float32


@pytest.mark.parametrize("temperature", [0.5, 1.0, 4.0])
def test_soft_kl_equals_torch(temperature: float) -> None:
    generator = torch.Generator().manual_seed(0)
    student, target = torch.randn(2, 6, 5, generator=generator)
    oracle = F.kl_div(
        F.log_softmax(student / temperature, -1), F.softmax(target / temperature, -1), reduction="none"
    ).sum(-1)
    torch.testing.assert_close(soft_kl(student, target, temperature), oracle)


def test_absent_options_take_no_part() -> None:
    student = torch.tensor([[0.3, -1.0, 2.0]], requires_grad=True)
    target = torch.tensor([[1.0, 0.5, -0.2]])
    wide_student = torch.tensor([[0.3, -1.0, 2.0, -INF, -INF]], requires_grad=True)
    wide_target = torch.tensor([[1.0, 0.5, -0.2, -INF, -INF]])
    narrow, wide = soft_kl(student, target, 2.0), soft_kl(wide_student, wide_target, 2.0)
    torch.testing.assert_close(wide, narrow)
    (a,) = torch.autograd.grad(narrow.sum(), student)
    (b,) = torch.autograd.grad(wide.sum(), wide_student)
    torch.testing.assert_close(b[:, :3], a)
    assert b[:, 3:].tolist() == [[0.0, 0.0]]


def test_one_hot_targets_give_cross_entropy() -> None:
    student = torch.tensor([[0.3, -1.0, 2.0]])
    target = torch.tensor([[-INF, 0.0, -INF]])
    torch.testing.assert_close(soft_kl(student, target, 1.0), F.cross_entropy(student, torch.tensor([1]))[None])


def test_loss_by_hand() -> None:
    # Row 0 is labelled, row 1 is of the pool; T = 2 softens logits (2 log 3, 0) to the probabilities (3/4, 1/4).
    student = torch.zeros(2, 2)
    target = torch.tensor([[2 * math.log(3), 0.0], [0.0, 0.0]])
    kl = 0.75 * math.log(1.5) + 0.25 * math.log(0.5)
    by_hand = (0.3 * math.log(2) + 0.7 * 4 * kl + 0.0) / 2
    loss = distillation_loss(student, target, torch.tensor([1, UNLABELLED]), alpha=0.3, temperature=2.0)
    assert loss.item() == pytest.approx(by_hand, rel=1e-6)


def test_a_row_weighs_the_same_with_two_options_as_with_five() -> None:
    # The same two-option problem, written once with three further options that student and target both rule out.
    student = torch.tensor([[1.0, -1.0, -INF, -INF, -INF], [1.0, -1.0, -60.0, -60.0, -60.0]], requires_grad=True)
    target = torch.tensor([[-0.5, 0.5, -INF, -INF, -INF], [-0.5, 0.5, -60.0, -60.0, -60.0]])
    answers = torch.tensor([0, 0])
    loss = distillation_loss(student, target, answers, alpha=0.5, temperature=1.0)
    (gradient,) = torch.autograd.grad(loss, student)
    torch.testing.assert_close(gradient[0], gradient[1])
    assert gradient[0, 0].abs() > 0.01
    alone = distillation_loss(student[:1, :2], target[:1, :2], answers[:1], alpha=0.5, temperature=1.0)
    torch.testing.assert_close(loss, alone)


@pytest.mark.parametrize("alpha", [0.0, 0.4, 1.0])
def test_pool_rows_learn_from_the_target_alone_at_full_weight(alpha: float) -> None:
    student = torch.randn(4, 3, generator=torch.Generator().manual_seed(1)).requires_grad_()
    target = torch.randn(4, 3, generator=torch.Generator().manual_seed(2))
    loss = distillation_loss(student, target, torch.full((4,), UNLABELLED), alpha=alpha, temperature=3.0)
    (gradient,) = torch.autograd.grad(loss, student)
    # d/dz of T^2 KL is T (q - p), here divided by the 4 rows.
    by_hand = 3.0 * (F.softmax(student / 3, -1) - F.softmax(target / 3, -1)) / 4
    torch.testing.assert_close(gradient, by_hand.detach())


def test_alpha_one_is_cross_entropy_on_labelled_rows() -> None:
    student = torch.randn(4, 3, generator=torch.Generator().manual_seed(1))
    answers = torch.tensor([0, 2, 1, 1])
    loss = distillation_loss(student, torch.randn(4, 3), answers, alpha=1.0, temperature=2.0)
    torch.testing.assert_close(loss, F.cross_entropy(student, answers))
