from __future__ import annotations

import numpy as np
import pytest
from readings import centred, features_of, options, rows, training_sets
from sklearn.linear_model import Ridge
from sklearn.preprocessing import StandardScaler

from probekd.probes.ridge import OptionRidgeProbe, RidgeProbe, leave_one_out, solve

L2 = (0.01, 0.3, 3.0)


def by_sklearn(x: np.ndarray, y: np.ndarray, l2: float, new: np.ndarray) -> np.ndarray:
    """scikit-learn sums squares without the half, so its alpha is n * l2; the bias is free in both."""
    scaler = StandardScaler().fit(x)
    return np.asarray(Ridge(alpha=len(x) * l2).fit(scaler.transform(x), np.eye(3)[y]).predict(scaler.transform(new)))


def option_design(x: np.ndarray, y: np.ndarray) -> tuple[list[np.ndarray], list[np.ndarray]]:
    """Features and indicators of each row, centred over its own options; a row weighs one in all."""
    there = x[~np.isnan(x).any(2)]
    mean, scale = there.mean(0), there.std(0)
    states, targets = [], []
    for row, gold in zip(x, y, strict=True):
        own = (row[~np.isnan(row).any(1)] - mean) / scale
        target = np.eye(len(own))[gold]
        states.append((own - own.mean(0)) / len(own) ** 0.5)
        targets.append((target - target.mean()) / len(own) ** 0.5)
    return states, targets


def option_weights(states: list[np.ndarray], targets: list[np.ndarray], total_l2: float) -> np.ndarray:
    a, b = np.concatenate(states), np.concatenate(targets)
    return np.linalg.solve(a.T @ a + total_l2 * np.eye(a.shape[1]), a.T @ b)


@pytest.mark.parametrize("d", [12, 100])  # fewer dimensions than rows, and more
def test_each_problem_is_scikit_learns_ridge_on_its_own_rows(d: int) -> None:
    x, y = rows(d=d)
    train = training_sets(len(x))
    fit = solve(features_of(x, 3), y, train, L2)
    for number, ours in enumerate(fit.logits(x)):
        mask = train[number // 3]
        np.testing.assert_allclose(ours, by_sklearn(x[mask], y[mask], L2[number % 3], x), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(("n", "d"), [(60, 6), (12, 80)])
def test_each_option_problem_is_its_normal_equations_on_its_own_rows(n: int, d: int) -> None:
    x, y = options(n=n, d=d)
    train = training_sets(n)
    fit = solve(features_of(x, 5, filler=1e5), y, train, L2)
    for number, ours in enumerate(fit.logits(np.nan_to_num(x))):
        mask, l2 = train[number // 3], L2[number % 3]
        there = x[mask][~np.isnan(x[mask]).any(2)]
        w = option_weights(*option_design(x[mask], y[mask]), mask.sum() * l2)
        expected = (x - there.mean(0)) / there.std(0) @ w
        ours = np.where(np.isnan(expected), np.nan, ours)
        np.testing.assert_allclose(centred(ours), centred(expected), rtol=1e-4, atol=2e-5)


@pytest.mark.parametrize(("n", "d"), [(40, 8), (20, 60)])
def test_leaving_one_out_equals_refitting_without_the_row(n: int, d: int) -> None:
    x, y = rows(n=n, d=d)
    z = StandardScaler().fit_transform(x)
    found = leave_one_out(features_of(x, 3), y, 0.2)
    for i in range(n):
        rest = np.arange(n) != i
        expected = Ridge(alpha=n * 0.2).fit(z[rest], np.eye(3)[y[rest]]).predict(z[i : i + 1])[0]
        np.testing.assert_allclose(found[i], expected, rtol=1e-6, atol=1e-8)


@pytest.mark.parametrize(("n", "d"), [(40, 6), (12, 70)])
def test_leaving_one_out_of_option_rows_equals_refitting_without_the_row(n: int, d: int) -> None:
    x, y = options(n=n, d=d)
    states, targets = option_design(x, y)
    found = leave_one_out(features_of(x, 5), y, 0.2)
    assert (np.isneginf(found) == np.isnan(x).any(2)).all()
    for i in range(n):
        w = option_weights(states[:i] + states[i + 1 :], targets[:i] + targets[i + 1 :], n * 0.2)
        k = len(states[i])
        np.testing.assert_allclose(found[i, :k], states[i] @ w * k**0.5, rtol=1e-6, atol=1e-8)


def test_probes_keep_what_leaving_one_out_says() -> None:
    x, y = rows()
    names = np.array(["cow", "ant", "bee"])[y]
    probe = RidgeProbe(l2=0.3).fit(x, names)
    np.testing.assert_allclose(
        probe.loo_, leave_one_out(features_of(x, 3), np.unique(names, return_inverse=True)[1], 0.3)
    )
    assert 0.5 < (probe.classes_[probe.loo_.argmax(1)] == names).mean() <= probe.score(x, names)
    x, y = options()
    scorer = OptionRidgeProbe(l2=0.3).fit(x, y)
    np.testing.assert_allclose(scorer.loo_, leave_one_out(features_of(x, 5), y, 0.3))
