from collections.abc import Callable

import numpy as np
import pytest
from scipy.optimize import minimize
from scipy.special import log_softmax, softmax
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from probekd.probes import logistic
from probekd.probes.choose import choose
from probekd.probes.crossfit import (
    CHOOSING_TOLERANCE,
    CrossFit,
    average,
    concatenate,
    crossfit,
    fit_folds,
    unseen_by,
    untrained,
)

L2 = (0.03, 0.5)
TIGHT = 1e-6


@pytest.fixture(autouse=True)
def choosing_is_exact_too(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("probekd.probes.crossfit.CHOOSING_TOLERANCE", 0.0)


def rows(seed: int, n: int, d: int, k: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """States (n, d) whose scales and means differ by dimension, answers that depend on them, folds 0, 1, 2."""
    generator = np.random.default_rng(seed)
    states = generator.normal(size=(n, d)) * generator.uniform(0.2, 5, d) + generator.normal(size=d) * 3
    centred = (states - states.mean(0)) / states.std(0)
    noisy = centred @ generator.normal(size=(d, k)) + generator.gumbel(size=(n, k))
    return states.astype(np.float32), noisy.argmax(1), generator.permutation(np.arange(n) % 3)


def option_rows(seed: int, n: int, d: int) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Option states (n, 5, d) of rows with 3 to 5 options, answers, presence, folds."""
    generator = np.random.default_rng(seed)
    present = np.arange(5) < generator.integers(3, 6, n)[:, None]
    states = generator.normal(size=(n, 5, d)) * generator.uniform(0.2, 5, d) + 2
    states = (states * present[:, :, None]).astype(np.float32)
    noisy = states @ generator.normal(size=d) / 3 + generator.gumbel(size=(n, 5))
    return states, np.where(present, noisy, -np.inf).argmax(1), present, generator.permutation(np.arange(n) % 3)


def by_sklearn(states: np.ndarray, answers: np.ndarray, train: np.ndarray, l2: float) -> np.ndarray:
    """Log-probabilities (n, K) of every row from a model of the rows in ``train``."""
    model = make_pipeline(
        StandardScaler(), LogisticRegression(C=1 / (train.sum() * l2), tol=1e-10, max_iter=10_000)
    ).fit(states[train].astype(np.float64), answers[train])
    return np.asarray(model.predict_log_proba(states.astype(np.float64)))


def by_scipy(states: np.ndarray, answers: np.ndarray, present: np.ndarray, train: np.ndarray, l2: float) -> np.ndarray:
    """As ``by_sklearn`` for the option scorer: its objective written down once more and given to BFGS."""
    there = states[train][present[train]].astype(np.float64)
    z = (states - there.mean(0)) / there.std(0)

    def logp(w: np.ndarray) -> np.ndarray:
        return np.asarray(log_softmax(np.where(present, z @ w, -np.inf), axis=1))

    def objective(w: np.ndarray) -> float:
        return float(-logp(w)[train, answers[train]].mean() + l2 / 2 * w @ w)

    return logp(minimize(objective, np.zeros(states.shape[2]), method="BFGS", options={"gtol": 1e-7}).x)


def fitted(seed: int, kind: str) -> tuple[CrossFit, np.ndarray, Callable[[np.ndarray, float], np.ndarray]]:
    """A cross-fit, its folds, and its brute-force double: log-probabilities of all rows from the rows of ``train``."""
    if kind == "answer":
        states, answers, folds = rows(seed, 60, 4, 3)
        present = np.ones((60, 3), dtype=bool)
    else:
        states, answers, present, folds = option_rows(seed, 45, 3)

    fits = crossfit(states, answers, present, folds, L2, tolerance=TIGHT)

    def refit(train: np.ndarray, l2: float) -> np.ndarray:
        if kind == "answer":
            return by_sklearn(states, answers, train, l2)
        return by_scipy(states, answers, present, train, l2)

    return fits, folds, refit


@pytest.mark.parametrize("kind", ["answer", "option"])
def test_outer_predictions_equal_a_refit_without_the_rows_fold(kind: str) -> None:
    fits, folds, refit = fitted(0, kind)
    for number, l2 in enumerate(L2):
        for f in range(3):
            expected = refit(folds != f, l2)[folds == f]
            found = log_softmax(fits.outer[number][folds == f], axis=1)
            np.testing.assert_allclose(found, expected, atol=2e-3)


@pytest.mark.parametrize("kind", ["answer", "option"])
def test_inner_predictions_equal_a_refit_without_both_folds(kind: str) -> None:
    fits, folds, refit = fitted(1, kind)
    for number, l2 in enumerate(L2):
        for f in range(3):
            for g in {0, 1, 2} - {f}:
                expected = refit((folds != f) & (folds != g), l2)[folds == g]
                found = log_softmax(fits.inner[f, number][folds == g], axis=1)
                np.testing.assert_allclose(found, expected, atol=2e-3)


@pytest.mark.parametrize("kind", ["answer", "option"])
def test_inner_predictions_are_missing_exactly_on_their_own_fold(kind: str) -> None:
    fits, folds, _ = fitted(2, kind)
    for f in range(3):
        missing = np.isnan(fits.inner[f])
        assert missing[:, folds == f].all()
        assert not missing[:, folds != f].any()
    assert not np.isnan(fits.outer).any()


def test_absent_options_have_no_chance_and_present_ones_do() -> None:
    states, answers, present, folds = option_rows(3, 30, 3)
    fits = crossfit(states, answers, present, folds, L2, tolerance=1e-4)
    assert (np.isneginf(fits.outer) == ~present).all()
    assert np.isfinite(fits.outer[:, present]).all()


def test_labels_of_a_fold_reach_neither_its_outer_nor_its_inner_predictions() -> None:
    states, answers, folds = rows(4, 60, 4, 3)
    present = np.ones((60, 3), dtype=bool)
    other = np.where(folds == 1, (answers + 1) % 3, answers)
    before = crossfit(states, answers, present, folds, L2, tolerance=TIGHT)
    after = crossfit(states, other, present, folds, L2, tolerance=TIGHT)
    np.testing.assert_allclose(after.outer[:, folds == 1], before.outer[:, folds == 1], atol=1e-5)
    np.testing.assert_allclose(after.inner[1], before.inner[1], atol=1e-5)
    assert np.abs(after.outer[:, folds != 1] - before.outer[:, folds != 1]).max() > 0.1


@pytest.mark.parametrize("kind", ["answer", "option"])
def test_random_labels_are_learnt_by_heart_but_not_out_of_fold(kind: str) -> None:
    generator = np.random.default_rng(5)
    n, d, k = 120, 400, 3
    states = generator.normal(size=(n, d) if kind == "answer" else (n, k, d)).astype(np.float32)
    answers, folds, present = generator.integers(0, k, n), np.arange(n) % 3, np.ones((n, k), dtype=bool)
    fits = crossfit(states, answers, present, folds, (0.01,), tolerance=1e-3)
    models = fit_folds(states, answers, present, folds, 0.01, tolerance=1e-3)
    seen = models.logits(states)[0].argmax(1)[folds != 0]
    assert (seen == answers[folds != 0]).mean() == 1.0
    within_chance = 3 * np.sqrt(2 / 9 / n)
    honest = choose(fits, answers, folds).honest
    assert abs((honest.argmax(1) == answers).mean() - 1 / 3) < within_chance
    assert abs((fits.outer[0].argmax(1) == answers).mean() - 1 / 3) < within_chance


def test_fold_models_are_the_ones_that_made_the_outer_predictions() -> None:
    states, answers, folds = rows(6, 60, 4, 3)
    present = np.ones((60, 3), dtype=bool)
    fits = crossfit(states, answers, present, folds, L2, tolerance=TIGHT)
    logits = fit_folds(states, answers, present, folds, L2[1], tolerance=TIGHT).logits(states)
    assert logits.shape == (3, 60, 3)
    for f in range(3):
        np.testing.assert_allclose(softmax(logits[f][folds == f], 1), softmax(fits.outer[1][folds == f], 1), atol=1e-4)


def test_concatenated_candidates_stay_in_order() -> None:
    first, second = (fitted(seed, "answer")[0] for seed in (7, 8))
    both = concatenate([first, second])
    np.testing.assert_array_equal(both.outer, np.concatenate([first.outer, second.outer]))
    np.testing.assert_array_equal(both.inner[2, 3], second.inner[2, 1])


@pytest.mark.parametrize("kind", ["answer", "option"])
def test_the_looser_tolerance_of_choosing_models_moves_no_score_that_chooses(kind: str) -> None:
    fits, _, _ = fitted(1, kind)
    with pytest.MonkeyPatch.context() as shipped:
        shipped.setattr("probekd.probes.crossfit.CHOOSING_TOLERANCE", CHOOSING_TOLERANCE)
        loose, folds, _ = fitted(1, kind)
    assert 0 < CHOOSING_TOLERANCE <= 1e-2
    assert (loose.outer == fits.outer).all()
    assert (loose.inner[np.isfinite(loose.inner)] != fits.inner[np.isfinite(loose.inner)]).any()
    for f in range(3):
        exact, quick = (log_softmax(x.inner[f][:, folds != f], axis=-1).max(-1).mean(-1) for x in (fits, loose))
        np.testing.assert_allclose(quick, exact, atol=2e-3)


def test_each_inner_problem_is_solved_once(monkeypatch: pytest.MonkeyPatch) -> None:
    sets: list[np.ndarray] = []
    original = logistic.solve

    def counted(features, answers, train, strengths, *, tolerance):  # type: ignore[no-untyped-def]
        sets.extend(train)
        return original(features, answers, train, strengths, tolerance=tolerance)

    monkeypatch.setattr(logistic, "solve", counted)
    states, answers, folds = rows(0, 60, 4, 3)
    crossfit(states, answers, np.ones((60, 3), dtype=bool), folds, L2, tolerance=1e-3)
    assert len(sets) == len({s.tobytes() for s in sets}) == 3 + 3


def test_an_average_is_of_logits_inside_and_outside() -> None:
    first, second, third = (fitted(seed, "answer")[0] for seed in (7, 8, 9))
    mean = average([first, second, third])
    np.testing.assert_allclose(mean.outer, (first.outer + second.outer + third.outer) / 3, rtol=1e-5, atol=1e-6)
    np.testing.assert_array_equal(average([first]).inner, first.inner)
    kept = first.inner.copy()
    both = average([first, second])
    np.testing.assert_allclose(both.inner, (first.inner + second.inner) / 2, rtol=1e-5, atol=1e-6)
    np.testing.assert_array_equal(first.inner, kept)  # parts are not written to
    assert (mean.one(1).outer == mean.outer[1:2]).all()
    np.testing.assert_array_equal(mean.one(1).inner[2, 0], mean.inner[2, 1])


def test_untrained_candidates_say_the_same_in_every_fold_but_are_silent_on_their_own() -> None:
    logits, folds = np.random.default_rng(2).normal(size=(2, 20, 3)), np.arange(20) % 4
    fits = untrained(logits, folds)
    assert fits.outer is logits
    for f in range(4):
        np.testing.assert_array_equal(fits.inner[f][:, folds != f], logits[:, folds != f])
        assert np.isnan(fits.inner[f][:, folds == f]).all()


def test_crossfit_refuses_shapes_that_do_not_belong_together() -> None:
    with pytest.raises(AssertionError):
        CrossFit(outer=np.zeros((2, 5, 3)), inner=np.zeros((4, 1, 5, 3)))


def test_what_models_say_of_rows_that_neither_of_their_folds_held() -> None:
    generator = np.random.default_rng(0)
    folds = generator.permutation(np.arange(17) % 4)
    inner = generator.normal(size=(4, 17, 3))
    found = unseen_by(inner, folds)
    for row, fold in enumerate(folds):
        np.testing.assert_array_equal(found[:, row], [inner[f, row] for f in range(4) if f != fold])
