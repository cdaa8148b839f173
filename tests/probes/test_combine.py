from __future__ import annotations

import numpy as np
import pytest
from scipy.optimize import minimize
from scipy.special import log_softmax

from probekd.probes.calibrate import fit_temperature, gold_losses
from probekd.probes.choose import wins
from probekd.probes.combine import WEIGHT_L2, pool_weights, pooled, stack_losses


def readers(
    seed: int, quality: tuple[float, ...], n: int = 300, *, ragged: bool = False
) -> tuple[np.ndarray, np.ndarray]:
    """Calibrated logits (J, n, 4) of readers that err independently, and answers."""
    draw = np.random.default_rng(seed)
    counts = draw.integers(2, 5, n) if ragged else np.full(n, 4)
    answers = draw.integers(counts)
    logits = np.stack([q * np.eye(4)[answers] + draw.normal(size=(n, 4)) for q in quality])
    logits = np.where(np.arange(4) < counts[:, None], logits, -np.inf)
    return logits / fit_temperature(logits, answers)[:, None, None], answers


def objective(weights: np.ndarray, logits: np.ndarray, answers: np.ndarray) -> float:
    there = np.isfinite(logits[0])
    z = np.where(there, np.tensordot(weights, np.where(there, logits, 0), 1), -np.inf)
    loss = -log_softmax(z, axis=1)[np.arange(len(answers)), answers].mean()
    return float(loss + WEIGHT_L2 * ((weights - np.eye(len(weights))[0]) ** 2).sum())


@pytest.mark.parametrize("ragged", [False, True])
@pytest.mark.parametrize("quality", [(1.5, 1.0), (1.5, 0.0, 1.0), (2.0, -1.0)])
def test_weights_are_the_best_that_are_not_negative(quality: tuple[float, ...], ragged: bool) -> None:
    logits, answers = readers(0, quality, ragged=ragged)
    if quality[-1] < 0:
        logits[-1] = -logits[0]  # what would get a negative weight
        logits[-1][np.isposinf(logits[-1])] = -np.inf
        logits[-1] += np.random.default_rng(5).normal(size=logits[-1].shape)
    found = pool_weights(logits, answers)
    assert (found >= 0).all()
    starts = np.random.default_rng(1).uniform(0, 2, size=(4, len(quality)))
    best = min(
        minimize(objective, s, (logits, answers), "L-BFGS-B", bounds=[(0, None)] * len(quality), tol=1e-12).fun
        for s in starts
    )
    assert objective(found, logits, answers) <= best + 1e-7
    if len(quality) == 2:
        grid = [np.array([a, b]) for a in np.linspace(0, 2, 21) for b in np.linspace(0, 2, 21)]
        assert objective(found, logits, answers) <= min(objective(g, logits, answers) for g in grid) + 1e-7


def test_two_readers_that_err_apart_beat_each() -> None:
    logits, answers = readers(2, (1.5, 1.5))
    folds = np.arange(300) % 5
    both = stack_losses(logits, answers, folds)
    for alone in logits:
        assert wins(both, stack_losses(alone[None], answers, folds))
    weights = pool_weights(logits, answers)
    assert weights.min() > 0.5
    np.testing.assert_allclose(gold_losses(pooled(weights, logits), answers).mean(), both.mean(), atol=0.03)


def test_copies_of_a_reader_get_no_weight_and_do_not_win() -> None:
    for seed in range(5):
        logits, answers = readers(seed, (1.5,))
        folds = np.arange(300) % 5
        copies = np.repeat(logits, 3, axis=0)
        assert pool_weights(copies, answers).argmax() == 0
        assert pool_weights(copies, answers)[1:].max() < 0.2
        alone = stack_losses(logits, answers, folds)
        np.testing.assert_allclose(stack_losses(copies, answers, folds).mean(), alone.mean(), atol=1e-2)
        noisy = copies + 0.01 * np.random.default_rng(seed).normal(size=copies.shape)
        assert not wins(stack_losses(noisy, answers, folds), alone)


def test_few_rows_leave_the_weights_near_the_best_reader() -> None:
    logits, answers = readers(2, (1.5, 1.5))
    few, many = pool_weights(logits[:, :12], answers[:12]), pool_weights(logits, answers)
    noise = np.random.default_rng(0).normal(size=(6, 12, 4))
    crowded = pool_weights(np.concatenate([logits[:1, :12], noise]), answers[:12])
    assert abs(crowded[0] - 1) < 0.3 and crowded[1:].max() < 0.5
    assert few[1] < many[1] + 0.3


def test_a_folds_weights_are_learned_on_the_others() -> None:
    logits, answers = readers(3, (1.5, 1.0))
    folds = np.arange(300) % 3
    losses = stack_losses(logits, answers, folds)
    for g in range(3):
        rest = folds != g
        z = pooled(pool_weights(logits[:, rest], answers[rest]), logits[:, ~rest])
        np.testing.assert_allclose(losses[~rest], gold_losses(z, answers[~rest]), rtol=1e-9)
    other = np.where(folds == 1, (answers + 1) % 4, answers)
    z = stack_losses(logits, other, folds)
    assert np.abs(z - losses)[folds == 0].max() > 1e-6  # the others' weights did notice


def test_absent_options_stay_absent() -> None:
    logits, answers = readers(4, (1.5, 1.0), ragged=True)
    z = pooled(pool_weights(logits, answers), logits)
    assert (np.isneginf(z) == np.isneginf(logits[0])).all() and not np.isnan(z).any()


def test_a_win_is_by_more_than_a_standard_error() -> None:
    noise = np.tile([-1.0, 1.0], 50)  # standard error 0.1
    assert wins(np.zeros(100), 0.11 + noise) and not wins(np.zeros(100), 0.09 + noise)
    assert not wins(np.zeros(100), np.zeros(100)) and not wins(np.zeros(100), noise - 0.5)
