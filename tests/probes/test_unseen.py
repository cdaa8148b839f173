"""Classes that a training set does not have: left out of the problem, then given what a rule of succession says."""

from __future__ import annotations

from itertools import product
from typing import Any

import numpy as np
import pytest
import torch
from scipy.optimize import minimize
from scipy.special import log_softmax, softmax

from probekd.probes.calibrate import (
    EVEN_ROWS,
    VECTOR_L2,
    calibrate,
    gold_losses,
    lapsing,
    one_temperature,
    vector_scaling,
)
from probekd.probes.choose import choose
from probekd.probes.crossfit import crossfit
from probekd.probes.families import Problem, solve, strengths_of
from probekd.probes.features import Features
from probekd.probes.lbfgs import Objective, minimise
from probekd.probes.unseen import class_counts, fill, mean_of_models, seen_temperature, unseen_shares

FAMILIES = ("logistic", "ridge", "mass_mean", "low_rank", "mlp")
EVERY = np.ones(5, dtype=bool)


# ---- the rule -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("counts", "each"),
    [
        ([20, 10, 8, 0], 1 / 40),  # one class that never came up in 38 rows
        ([30, 8, 0, 0], 1 / 80),  # rows were never the only ones of their class: two unseen share what one would get
        ([34, 1, 1, 1, 1, 0, 0], 1 / 40),  # they often were: each gets what it would get alone
        ([36, 1, 1, 0, 0, 0, 0], 3 / 40 / 4),
        ([30, 8], 0),
    ],
)
def test_shares_are_the_smaller_of_two_rules_of_succession(counts: list[int], each: float) -> None:
    found = unseen_shares(np.array(counts), np.ones(len(counts), dtype=bool))
    np.testing.assert_allclose(found, np.where(np.array(counts) == 0, each, 0.0))


def test_shares_are_probabilities_whatever_the_counts_and_options() -> None:
    for counts in product(range(3), repeat=5):
        found = unseen_shares(np.array(counts), EVERY)
        assert 0 <= found.sum() < 1 and (found > 0).tolist() == [c == 0 for c in counts]
    # A row has its own options: what it lacks gets nothing, and takes nothing from the others.
    present = np.arange(4) < np.array([2, 3, 4])[:, None]
    np.testing.assert_allclose(
        unseen_shares(np.array([9, 9, 0, 0]), present), [[0] * 4, [0, 0, 0.05, 0], [0, 0, 0.025, 0.025]]
    )


def test_good_turings_share_is_near_the_truth_where_half_the_classes_are_unseen() -> None:
    draw = np.random.default_rng(0)
    errors = []
    for _ in range(300):
        truth = draw.dirichlet(np.full(40, 0.5))
        counts = draw.multinomial(40, truth)
        errors.append(unseen_shares(counts, np.ones(40, dtype=bool)).sum() - truth[counts == 0].sum())
    assert abs(np.mean(errors)) < 0.05


# ---- logits -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("temperature", [0.02, 1.0, 50.0])
def test_filled_logits_give_unseen_classes_their_shares_and_leave_the_others_odds(temperature: float) -> None:
    z = temperature * np.random.default_rng(0).normal(size=(2, 6, 5)).astype(np.float32)
    z[..., 1], z[..., 3] = -np.inf, -np.inf
    shares = np.tile([0, 0.05, 0, 0.1, 0], (6, 1))
    shares[0, 3] = 0.0  # an option that the first row does not have
    filled = fill(z, shares, temperature)
    assert filled.dtype == np.float32
    p = softmax(filled / temperature, axis=-1)
    np.testing.assert_allclose(p[..., [1, 3]], np.broadcast_to(shares[:, [1, 3]], (2, 6, 2)), rtol=1e-4)
    np.testing.assert_array_equal(filled[..., [0, 2, 4]], z[..., [0, 2, 4]])
    assert np.isneginf(filled[:, 0, 3]).all()


def test_what_is_said_needs_no_filling_and_what_nobody_saw_gets_shares_alone() -> None:
    said = np.array([[1.0, 2.0, 3.0]])
    np.testing.assert_array_equal(fill(said, np.array([[0, 0.5, 0]])), said)
    nothing = fill(np.full((1, 3), -np.inf), np.array([[0.2, 0.2, 0]]))
    assert softmax(nothing, axis=1)[0] == pytest.approx([0.5, 0.5, 0.0])


def test_temperature_is_that_of_the_rows_whose_class_was_seen() -> None:
    draw = np.random.default_rng(1)
    z, answers = draw.normal(size=(2, 30, 4)) * 3, np.arange(30) % 4
    shares = np.zeros((30, 4))
    shares[:, 2] = 0.1
    z[:, :, 2] = -np.inf
    seen = answers != 2
    np.testing.assert_allclose(seen_temperature(z, answers, shares), one_of_each(z[:, seen], answers[seen]))
    assert seen_temperature(z, np.full(30, 2), shares).tolist() == [1.0, 1.0]


def one_of_each(z: np.ndarray, answers: np.ndarray) -> list[float]:
    return [one_temperature(one, answers).temperature for one in z]


def test_the_mean_of_models_is_over_those_that_saw_the_class() -> None:
    z = np.array([[[1.0, -np.inf, -np.inf]], [[3.0, 4.0, -np.inf]]])
    assert mean_of_models(z).tolist() == [[2.0, 4.0, -np.inf]]


def test_calibration_hears_no_row_whose_class_was_never_seen() -> None:
    draw = np.random.default_rng(2)
    z, answers, folds = draw.normal(size=(40, 4)), np.arange(40) % 4, np.arange(40) % 5
    z[:, 3] = -np.inf
    seen = answers != 3
    found, plain = calibrate(z, answers, folds), lapsing(z[seen, :3], answers[seen])
    assert found.kind == "temperature and lapse" and found.lapse == pytest.approx(plain.lapse)
    np.testing.assert_allclose(found.scale, [plain.scale[0]] * 4)
    assert calibrate(z, np.full(40, 3), folds).temperature == 1.0
    # A class that was never seen takes no other's scale and shift away.
    z[:, :3] = 3 * np.eye(3)[answers % 3] + draw.normal(size=(40, 3)) + [0, 8, 0]
    found, three = calibrate(z, answers % 3, folds), calibrate(z[:, :3], answers % 3, folds)
    assert found.kind == three.kind == "vector scaling"
    np.testing.assert_allclose(found.scale[:3], three.scale)
    np.testing.assert_allclose(found.shift, [*three.shift, 0])


def test_vector_scaling_leaves_classes_that_are_no_rows_answer_at_the_temperature() -> None:
    draw = np.random.default_rng(3)
    answers = np.arange(80) % 3
    z = 2 * np.eye(5)[answers] + draw.normal(size=(80, 5)) + [0, 2, 0, 1, 0]
    start, found = one_temperature(z, answers), vector_scaling(z, answers)
    assert found.scale[3:].tolist() == start.scale[3:].tolist() and found.shift[3:].tolist() == [0, 0]
    assert np.abs(found.shift[:3]).min() > 0.01

    def objective(point: np.ndarray) -> float:
        said = log_softmax(z[:, :3] * start.scale[0] * (1 + point[:3]) + point[3:], axis=1)
        losses = -said[np.arange(80), answers].sum() - EVEN_ROWS * said.mean()
        return float(losses / 80 + VECTOR_L2 / 2 * point @ point)

    best = minimize(objective, np.zeros(6), method="BFGS", options={"gtol": 1e-8}).x
    np.testing.assert_allclose(found.scale[:3], start.scale[:3] * (1 + best[:3]), atol=1e-4)
    np.testing.assert_allclose(found.shift[:3], best[3:], atol=1e-4)


# ---- families -----------------------------------------------------------------------------------------------------


def problem(classes: int, *, absent: int, d: int = 30, n: int = 120) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """States (n, d), answers, and two training sets of which the second has no row of a class."""
    draw = np.random.default_rng(4)
    answers = np.arange(n) % classes
    states = draw.normal(size=(n, d)) + 2 * np.eye(classes, d)[answers] + 3
    train = np.stack([np.ones(n, dtype=bool), answers != absent])
    return states.astype(np.float32), answers, train


def fitted(family: str, states: np.ndarray, answers: np.ndarray, train: np.ndarray, classes: int) -> np.ndarray:
    """(T * S, n, classes) logits."""
    features = Features(states, np.ones((len(states), classes), dtype=bool), torch.float64)
    strengths = strengths_of(family, (0.03, 0.3))  # type: ignore[arg-type]
    folds = np.random.default_rng(9).permutation(len(states)) % 3
    what = Problem(features=features, answers=answers, train=train, folds=folds, strengths=strengths, tolerance=1e-7)
    return solve(family, what).logits(states)  # type: ignore[arg-type]


@pytest.mark.parametrize("family", FAMILIES)
def test_a_class_that_a_training_set_lacks_is_not_said_and_the_others_are(family: str) -> None:
    classes = 20 if family == "low_rank" else 4
    said = fitted(family, *problem(classes, absent=1), classes)
    whole, lacking = np.split(said, 2)
    assert np.isfinite(whole).all()
    assert np.isneginf(lacking[:, :, 1]).all() and np.isfinite(np.delete(lacking, 1, axis=2)).all()


@pytest.mark.parametrize("family", ["logistic", "ridge", "mass_mean", "low_rank"])
def test_the_others_are_said_as_if_there_were_no_such_class(family: str) -> None:
    classes = 20 if family == "low_rank" else 4
    states, answers, train = problem(classes, absent=classes - 1)
    lacking = np.split(fitted(family, states, answers, train, classes), 2)[1]
    rows = train[1]
    alone = fitted(family, states[rows], answers[rows], np.ones((1, rows.sum()), dtype=bool), classes - 1)
    np.testing.assert_allclose(
        log_softmax(lacking[:, rows, :-1], axis=2), log_softmax(alone, axis=2), rtol=1e-3, atol=1e-3
    )


def test_a_network_is_trained_as_if_there_were_no_such_class(monkeypatch: pytest.MonkeyPatch) -> None:
    original = torch.randn

    def cut(rows: int, columns: int, **options: Any) -> torch.Tensor:
        """First weights that a further column leaves as they are."""
        return original(rows, 64, **options)[:, :columns]

    monkeypatch.setattr(torch, "randn", cut)
    states, answers, train = problem(4, absent=3)
    rows = train[1]
    every = np.ones((1, rows.sum()), dtype=bool)
    four, three = (fitted("mlp", states[rows], answers[rows], every, classes) for classes in (4, 3))
    np.testing.assert_allclose(log_softmax(four[..., :3], axis=2), log_softmax(three, axis=2), rtol=1e-4, atol=1e-4)


def test_no_step_is_spent_on_a_class_that_is_not_there(monkeypatch: pytest.MonkeyPatch) -> None:
    looks = []

    def counted(objective: Objective, start: torch.Tensor, **options: Any) -> torch.Tensor:
        return minimise(lambda points, which: (looks.append(len(which)), objective(points, which))[1], start, **options)

    monkeypatch.setattr("probekd.probes.logistic.minimise", counted)
    states, answers, _ = problem(10, absent=3, d=12)
    rows = answers < 5
    found = []
    for classes in (5, 60):
        looks.clear()
        fitted("logistic", states[rows], answers[rows], np.ones((1, rows.sum()), dtype=bool), classes)
        found.append(sum(looks))
    assert found[1] < 1.3 * found[0], found


def test_a_network_always_learns_from_rows_of_fold_minus_one() -> None:
    states, answers, _ = problem(4, absent=3)
    rows = (answers != 3) | (np.arange(120) == 7)  # one row of the last class
    folds = np.where(answers == 3, -1, np.arange(120) // 4 % 3)
    features = Features(states[rows], np.ones((rows.sum(), 4), dtype=bool))
    what = Problem(
        features=features,
        answers=answers[rows],
        train=np.ones((1, rows.sum()), dtype=bool),
        folds=folds[rows],
        strengths=(0.001,),
        tolerance=0,
    )
    said = solve("mlp", what).logits(states[rows])[0]
    # Stopped on the one row of fold -1, which no other row helps, it would have learned nothing.
    assert (said.argmax(1) == answers[rows])[folds[rows] >= 0].mean() > 0.8
    there = np.flatnonzero(np.flatnonzero(rows) == 7)[0]
    assert (softmax(said, axis=1)[:, 3].argsort()[-3:] == there).any()


# ---- cross-fitting ------------------------------------------------------------------------------------------------


def rare_rows(n: int, d: int, classes: int, seed: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Noise, answers of which one class is in fold 1 alone, one has one row (fold -1), and two have none; folds."""
    draw = np.random.default_rng(seed)
    answers, folds = draw.permutation(np.arange(n) % (classes - 4)), draw.permutation(n) % 3
    answers[np.flatnonzero(folds == 1)[:3]] = classes - 4
    answers[0], folds[0] = classes - 3, -1
    return draw.normal(size=(n, d)).astype(np.float32), answers, folds


@pytest.mark.parametrize("family", FAMILIES)
def test_random_labels_with_rare_classes_are_not_read_out_of_fold(family: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        "probekd.probes.choose.calibrate",
        lambda z, answers, *_, **__: calibrate(z, answers, np.arange(len(answers)) % 2),
    )
    monkeypatch.setattr("probekd.probes.calibrate.vector_scaling", one_temperature)
    n, k = 241, 20
    states, answers, folds = rare_rows(n, 40, k, seed=5)
    strengths, present = strengths_of(family, (0.03, 0.3)), np.ones((n, k), dtype=bool)  # type: ignore[arg-type]
    fits = crossfit(states, answers, present, folds, strengths, tolerance=1e-3, family=family)  # type: ignore[arg-type]
    assert fits.outer.shape == (len(strengths), n - 1, k)
    gold, own = answers[folds >= 0], folds[folds >= 0]
    honest = choose(fits, gold, own).honest
    assert np.isfinite(honest).all()
    losses = gold_losses(honest, gold)
    assert losses.mean() > np.log(k - 4) - 3 * losses.std() / n**0.5
    assert (honest.argmax(1) == gold).mean() < 1 / 16 + 3 * np.sqrt(1 / 16 * (15 / 16) / n)
    p = softmax(honest, axis=1)
    for f in range(3):
        counts = np.bincount(answers[folds != f], minlength=k)
        expected = unseen_shares(counts, np.ones(k, dtype=bool))
        assert (expected > 0).sum() == (3 if f == 1 else 2)
        found = p[own == f][:, expected > 0]
        np.testing.assert_allclose(found, np.broadcast_to(expected[expected > 0], found.shape), rtol=1e-4)
        assert expected.max() <= 1 / (counts.sum() + 2)


def test_shares_come_from_the_rows_that_each_model_learned_from() -> None:
    states, answers, folds = rare_rows(100, 5, 8, seed=6)
    fits = crossfit(states, answers, np.ones((100, 8), dtype=bool), folds, (0.3,), tolerance=1e-3)
    own = folds[folds >= 0]
    for f, g in product(range(3), repeat=2):
        counts = class_counts(answers, (~np.isin(folds, (f, g)))[None], 8)
        expected = unseen_shares(counts[0], np.ones(8, dtype=bool))
        assert (fits.shares[f, own == g] == expected).all()
        said = fits.outer[0, own == f] if f == g else fits.inner[f, 0, own == g]
        assert (np.isneginf(said) == (counts == 0)).all()


def test_letters_that_are_rare_among_options_follow_the_same_rule() -> None:
    draw = np.random.default_rng(7)
    n = 90
    present = np.arange(5) < np.where(np.arange(n) % 10 == 0, 5, 4)[:, None]
    answers = draw.integers(4, size=n)  # the fifth letter is an option of some rows and the answer of none
    states, folds = draw.normal(size=(n, 6)).astype(np.float32), np.arange(n) % 3
    fits = crossfit(states, answers, present, folds, (0.3,), tolerance=1e-3)
    honest = choose(fits, answers, folds).honest
    assert (np.isfinite(honest) == present).all()
    np.testing.assert_allclose(softmax(honest, axis=1)[present[:, 4], 4], 1 / 62, rtol=1e-4)
