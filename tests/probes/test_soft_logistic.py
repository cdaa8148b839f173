"""solve_soft against scikit-learn on rows repeated by class, and against scipy for options."""

from __future__ import annotations

import time

import numpy as np
import pytest
import torch
from readings import centred, features_of, options, rows, training_sets
from scipy.optimize import minimize
from scipy.special import log_softmax, softmax
from sklearn.linear_model import LogisticRegression

from probekd.probes.features import Features
from probekd.probes.logistic import solve, solve_soft

L2 = (0.03, 0.3, 3.0)


def distributions(present: np.ndarray, seed: int = 4) -> np.ndarray:
    """Random targets (n, K), 0 where a row has no such option."""
    logits = np.random.default_rng(seed).normal(scale=2, size=present.shape)
    return np.asarray(softmax(np.where(present, logits, -np.inf), axis=1))


def row_weights(n: int) -> np.ndarray:
    """Two training sets (2, n) whose rows weigh 0 to 3."""
    return np.random.default_rng(5).integers(0, 4, size=(2, n)).astype(float)


def weighted_moments(x: np.ndarray, weights: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    mean = np.average(x, axis=0, weights=weights)
    scale = np.average((x - mean) ** 2, axis=0, weights=weights) ** 0.5
    return mean, np.where(scale > 1e-6, scale, 1.0)


def test_targets_are_what_scikit_learn_makes_of_each_row_in_every_class() -> None:
    x, _ = rows()
    n, k = len(x), 3
    targets, weights = distributions(np.ones((n, k), dtype=bool)), row_weights(n)
    fit = solve_soft(features_of(x, k), targets, weights, L2, tolerance=1e-9)
    for number, ours in enumerate(fit.logits(x)):
        weight, l2 = weights[number // 3], L2[number % 3]
        mean, scale = weighted_moments(x, weight)
        each = (x - mean) / scale
        model = LogisticRegression(C=1 / (weight.sum() * l2), tol=1e-12, max_iter=10000)
        shares = (weight[:, None] * targets).T.ravel()
        model.fit(np.tile(each, (k, 1)), np.repeat(np.arange(k), n), sample_weight=shares)
        expected = each @ model.coef_.T + model.intercept_
        np.testing.assert_allclose(centred(ours), centred(expected), rtol=1e-4, atol=1e-4)


def test_option_targets_are_the_brute_force_minimum() -> None:
    x, _ = options()
    present = ~np.isnan(x).any(2)
    targets, weights = distributions(present), row_weights(len(x))
    fit = solve_soft(features_of(x, 5, filler=1e6), targets, weights, L2, tolerance=1e-9)
    for number, ours in enumerate(fit.logits(np.nan_to_num(x))):
        weight, l2 = weights[number // 3], L2[number % 3]
        mean, scale = weighted_moments(x[present], np.broadcast_to(weight[:, None], present.shape)[present])
        each = (x - mean) / scale

        def loss(w: np.ndarray, each: np.ndarray = each, weight: np.ndarray = weight, l2: float = l2) -> float:
            logp = log_softmax(np.where(present, each @ w, -np.inf), axis=1)
            cross = -(targets * np.where(present, logp, 0)).sum(1)
            return float(weight @ cross / weight.sum() + l2 / 2 * w @ w)

        best = minimize(loss, np.zeros(x.shape[2]), method="BFGS", options={"gtol": 1e-7}).x
        ours = np.where(present, ours, np.nan)
        np.testing.assert_allclose(centred(ours), centred(each @ best), rtol=2e-3, atol=2e-4)


@pytest.mark.parametrize("shape", ["classes", "options"])
def test_one_hot_targets_are_gold_labels(shape: str) -> None:
    x, y = rows() if shape == "classes" else options()
    held = features_of(x, 3)
    train = training_sets(len(x))
    one_hot = np.eye(held.classes)[y]
    soft = solve_soft(held, one_hot, train.astype(float), L2, tolerance=1e-10)
    hard = solve(held, y, train, L2, tolerance=1e-10)
    torch.testing.assert_close(soft.weight, hard.weight, rtol=1e-5, atol=1e-8)
    torch.testing.assert_close(soft.bias, hard.bias, rtol=1e-5, atol=1e-8)


def test_many_classes_at_every_strength_take_less_than_a_few_seconds() -> None:
    draw = np.random.default_rng(0)
    n, d, k = 1500, 384, 77
    x = draw.normal(size=(n, d)).astype(np.float32)
    targets = softmax(x @ draw.normal(size=(d, k)) / 5, axis=1)
    features = Features(x, np.ones((n, k), dtype=bool))
    began = time.monotonic()
    fit = solve_soft(features, targets, np.ones((1, n)), (0.01, 0.03, 0.1, 0.3, 1.0), tolerance=1e-4)
    assert time.monotonic() - began < 10  # about 0.6 s on an idle core
    assert (fit.logits(x)[0].argmax(1) == targets.argmax(1)).mean() > 0.8
