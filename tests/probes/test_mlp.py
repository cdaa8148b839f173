from __future__ import annotations

import numpy as np
import pytest
import torch
from readings import features_of, options
from scipy.special import log_softmax

from probekd.probes import logistic, mlp
from probekd.probes.mlp import MLPFit, MLPProbe, OptionMLPProbe, solve


def exclusive(n: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """The answer is whether two coordinates have different signs: no line tells."""
    x = np.random.default_rng(seed).normal(size=(n, 4)) * [1, 20, 1, 1] + [5, 100, 0, 0]
    return x, ((x[:, 0] > 5) != (x[:, 1] > 100)).astype(int)


def exclusive_options(n: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """As ``exclusive``: of two or three options the gold one alone has different signs."""
    draw = np.random.default_rng(seed)
    sizes = draw.uniform(0.3, 2, size=(n, 3, 2))
    signs = np.where(draw.random((n, 3)) < 0.5, 1, -1)
    y = draw.integers(2, size=n)
    gold = np.eye(3)[y] == 1
    x = np.stack([sizes[..., 0] * signs, sizes[..., 1] * signs * np.where(gold, -1, 1)], axis=2)
    x[: n // 2, 2] = np.nan
    return x, y


def test_it_learns_what_no_linear_probe_can() -> None:
    x, y = exclusive(300)
    new, gold = exclusive(300, seed=1)
    assert MLPProbe(l2=0.001).fit(x, y).score(new, gold) > 0.85
    assert logistic.LogisticProbe(l2=0.01).fit(x, y).score(new, gold) < 0.65


def test_so_does_its_option_scorer() -> None:
    x, y = exclusive_options(300)
    new, gold = exclusive_options(300, seed=1)
    probe = OptionMLPProbe(l2=0.001).fit(x, y)
    assert probe.score(new, gold) > 0.85
    assert logistic.OptionProbe(l2=0.01).fit(x, y).score(new, gold) < 0.65
    absent = np.isnan(new).any(2)
    assert absent.any() and (probe.predict_proba(new)[absent] == 0).all()


def fit_of(x: np.ndarray, y: np.ndarray, folds: np.ndarray, train: np.ndarray | None = None) -> MLPFit:
    train = np.ones((1, len(x)), dtype=bool) if train is None else train
    return solve(features_of(x, 2), y, train, folds, (0.001,))


def stop_loss(fit: MLPFit, x: np.ndarray, y: np.ndarray) -> float:
    return float(-log_softmax(fit.logits(x)[0], axis=1)[np.arange(len(y)), y].mean())


def test_the_weights_kept_are_those_of_the_least_loss_on_the_fold_that_stops(monkeypatch: pytest.MonkeyPatch) -> None:
    draw = np.random.default_rng(0)
    x, y, folds = draw.normal(size=(60, 30)), draw.integers(2, size=60), np.arange(60) % 3  # nothing to learn: overfits
    kept = stop_loss(fit_of(x, y, folds), x[folds == 0], y[folds == 0])
    along = []
    for steps in range(1, 70, 4):
        monkeypatch.setattr(mlp, "STEPS", steps)
        along.append(stop_loss(fit_of(x, y, folds), x[folds == 0], y[folds == 0]))
    assert kept <= min(along) + 1e-9
    assert along == sorted(along, reverse=True)  # more steps never keep worse weights
    monkeypatch.setattr(mlp, "STEPS", 300)
    monkeypatch.setattr(mlp, "PATIENCE", 300)
    assert stop_loss(fit_of(x, y, folds), x[folds == 0], y[folds == 0]) == pytest.approx(kept, rel=0.05)


def test_rows_that_stop_are_not_fitted_to(monkeypatch: pytest.MonkeyPatch) -> None:
    x, y = exclusive(90)
    folds = np.arange(90) % 3
    monkeypatch.setattr(mlp, "STEPS", 2)  # the second weights are the better for either labels
    first = fit_of(x, y, folds)
    noisy = y.copy()
    swapped = np.flatnonzero((folds == 0) & (y == 0))[:1]
    noisy[swapped] = 1
    second = fit_of(x, noisy, folds)
    torch.testing.assert_close(first.weight_in, second.weight_in, rtol=0, atol=0)
    fitted = y.copy()
    fitted[np.flatnonzero(folds == 1)] ^= 1
    assert not torch.equal(first.weight_in, fit_of(x, fitted, folds).weight_in)


def test_rows_outside_the_training_set_play_no_part() -> None:
    x, y = exclusive(90)
    folds = np.arange(90) % 3
    train = (folds != 1)[None]
    other, labels = np.where((folds == 1)[:, None], -3 * x, x), np.where(folds == 1, 1 - y, y)
    one, two = fit_of(x, y, folds, train).logits(x), fit_of(other, labels, folds, train).logits(x)
    np.testing.assert_allclose(one, two, rtol=1e-3, atol=1e-3)


def test_it_gives_the_same_again_and_the_seed_matters() -> None:
    x, y = exclusive(80)
    first, again, other = (MLPProbe(seed=s).fit(x, y).decision_function(x) for s in (0, 0, 1))
    np.testing.assert_array_equal(first, again)
    assert np.abs(first - other).max() > 1e-3


def test_a_batch_gives_what_each_problem_gives_alone() -> None:
    x, y = options()
    held, folds = features_of(x, 5), np.arange(len(y)) % 3
    train = np.stack([folds != f for f in range(3)])
    together = solve(held, y, train, folds, (0.001, 0.1)).logits(np.nan_to_num(x))
    assert together.shape == (6, 60, 5)
    for number in range(6):
        alone = solve(held, y, train[number // 2][None], folds, ((0.001, 0.1)[number % 2],)).logits(np.nan_to_num(x))
        np.testing.assert_allclose(together[number], alone[0], rtol=1e-3, atol=1e-3)
