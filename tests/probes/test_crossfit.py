from collections.abc import Callable

import numpy as np
import pytest
import torch
from scipy.optimize import minimize
from scipy.special import log_softmax, softmax
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from probekd.probes.calibrate import fit_temperature, gold_losses
from probekd.probes.crossfit import Choice, CrossFit, choose, concatenate, crossfit, fit_folds, untrained

L2 = (0.03, 0.5)
TIGHT = 1e-6


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
    seen = models.logits(torch.as_tensor(states))[0].numpy().argmax(1)[folds != 0]
    assert (seen == answers[folds != 0]).mean() == 1.0
    within_chance = 3 * np.sqrt(2 / 9 / n)
    honest = choose(fits, answers, folds).honest
    assert abs((honest.argmax(1) == answers).mean() - 1 / 3) < within_chance
    assert abs((fits.outer[0].argmax(1) == answers).mean() - 1 / 3) < within_chance


def test_fold_models_are_the_ones_that_made_the_outer_predictions() -> None:
    states, answers, folds = rows(6, 60, 4, 3)
    present = np.ones((60, 3), dtype=bool)
    fits = crossfit(states, answers, present, folds, L2, tolerance=TIGHT)
    logits = fit_folds(states, answers, present, folds, L2[1], tolerance=TIGHT).logits(torch.as_tensor(states)).numpy()
    assert logits.shape == (3, 60, 3)
    for f in range(3):
        np.testing.assert_allclose(softmax(logits[f][folds == f], 1), softmax(fits.outer[1][folds == f], 1), atol=1e-4)


def test_concatenated_candidates_stay_in_order() -> None:
    first, second = (fitted(seed, "answer")[0] for seed in (7, 8))
    both = concatenate([first, second])
    np.testing.assert_array_equal(both.outer, np.concatenate([first.outer, second.outer]))
    np.testing.assert_array_equal(both.inner[2, 3], second.inner[2, 1])


# ---- choose -------------------------------------------------------------------------------------------------------


def synthetic(
    seed: int, *, candidates: int, n: int, k: int = 3, strength: float = 1.5
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Equally good candidates: logits (C, n, K) that favour the gold option by ``strength`` under noise of size one."""
    generator = np.random.default_rng(seed)
    answers = generator.integers(0, k, n)
    logits = strength * np.eye(k)[answers] + generator.normal(size=(candidates, n, k))
    return logits, answers, np.arange(n) % 4


def random_fits(seed: int) -> tuple[CrossFit, np.ndarray, np.ndarray]:
    """A cross-fit whose inner predictions are not its outer ones."""
    logits, answers, folds = synthetic(seed, candidates=6, n=40)
    inner = np.random.default_rng(100 + seed).normal(size=(4, *logits.shape)) + 1.5 * np.eye(3)[answers]
    inner = np.where((folds == np.arange(4)[:, None])[:, None, :, None], np.nan, inner)
    return CrossFit(outer=logits, inner=inner), answers, folds


def local_temperature(choice: Choice, fits: CrossFit, folds: np.ndarray, f: int) -> np.ndarray:
    return np.asarray(fits.outer[choice.by_fold[f]][folds == f] / choice.honest[folds == f])


def test_choice_equals_the_definition_written_out() -> None:
    fits, answers, folds = random_fits(0)
    choice = choose(fits, answers, folds)
    for c in range(6):
        t = float(fit_temperature(fits.outer[c], answers))
        assert choice.temperatures[c] == pytest.approx(t)
        assert choice.losses[c] == pytest.approx(gold_losses(fits.outer[c] / t, answers).mean())
    assert choice.chosen == min(range(6), key=lambda c: choice.losses[c])
    assert choice.temperature == choice.temperatures[choice.chosen]
    for f in range(4):
        seen = folds != f
        local = [float(fit_temperature(fits.inner[f, c][seen], answers[seen])) for c in range(6)]
        losses = [gold_losses(fits.inner[f, c][seen] / t, answers[seen]).mean() for c, t in enumerate(local)]
        best = int(np.argmin(losses))
        assert choice.by_fold[f] == best
        np.testing.assert_allclose(choice.honest[folds == f], fits.outer[best][folds == f] / local[best])
    assert len(set(choice.by_fold)) > 1  # else nothing above was tested


@pytest.mark.parametrize("f", range(4))
def test_a_fold_has_no_say_in_its_own_candidate_and_temperature(f: int) -> None:
    fits, answers, folds = random_fits(1)
    before = choose(fits, answers, folds)
    held = folds == f
    others = np.where(held, (answers + 1) % 3, answers)
    # What the fold's rows look like, and all that any model which saw them says, may change as it likes.
    outer = np.random.default_rng(f).normal(size=fits.outer.shape) * 5
    inner = fits.inner.copy()
    inner[np.arange(4) != f] *= -3.0
    after = choose(CrossFit(outer=outer, inner=inner), others, folds)
    assert after.by_fold[f] == before.by_fold[f]
    np.testing.assert_allclose(
        local_temperature(after, CrossFit(outer=outer, inner=inner), folds, f),
        local_temperature(before, fits, folds, f),
        rtol=1e-9,
    )
    assert after.by_fold != before.by_fold  # the other folds did notice


def test_the_chosen_of_many_equal_candidates_looks_too_good_and_the_honest_word_does_not() -> None:
    big, gold, _ = synthetic(999, candidates=1, n=100_000)
    t = fit_temperature(big, gold)
    true_nll = float(gold_losses(big / t[:, None, None], gold).mean())
    true_accuracy = float((big[0].argmax(1) == gold).mean())
    found = []
    for seed in range(60):
        logits, answers, folds = synthetic(seed, candidates=30, n=48)
        choice = choose(untrained(logits, folds), answers, folds)
        found.append(
            (
                choice.losses[choice.chosen] - true_nll,
                (logits[choice.chosen].argmax(1) == answers).mean() - true_accuracy,
                gold_losses(choice.honest, answers).mean() - true_nll,
                (choice.honest.argmax(1) == answers).mean() - true_accuracy,
            )
        )
    errors = np.array(found)
    mean, standard_error = errors.mean(0), errors.std(0) / np.sqrt(len(errors))
    assert mean[0] < -0.1 and mean[1] > 0.05
    # A temperature fitted on 36 rows costs a little; that is an honest cost, and above zero.
    assert -3 * standard_error[2] < mean[2] < 0.04 + 3 * standard_error[2]
    assert abs(mean[3]) < 3 * standard_error[3]


def test_untrained_candidates_say_the_same_in_every_fold_but_are_silent_on_their_own() -> None:
    logits, _, folds = synthetic(2, candidates=2, n=20)
    fits = untrained(logits, folds)
    assert fits.outer is logits
    for f in range(4):
        np.testing.assert_array_equal(fits.inner[f][:, folds != f], logits[:, folds != f])
        assert np.isnan(fits.inner[f][:, folds == f]).all()


def test_crossfit_refuses_shapes_that_do_not_belong_together() -> None:
    with pytest.raises(AssertionError):
        CrossFit(outer=np.zeros((2, 5, 3)), inner=np.zeros((4, 1, 5, 3)))
