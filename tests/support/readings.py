"""States with planted answers, and what independent solvers make of them."""

from __future__ import annotations

import numpy as np
import torch
from scipy.optimize import minimize
from sklearn.linear_model import LogisticRegression
from sklearn.preprocessing import StandardScaler

from probekd.probes.features import Features


def rows(n: int = 80, d: int = 12, classes: int = 3, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """States (n, d) as a teacher's, and answers: a mean far from 0, one massive and one constant dimension."""
    draw = np.random.default_rng(seed)
    y = draw.integers(classes, size=n)
    x = draw.normal(size=(n, d)) + draw.normal(size=(classes, d))[y] + 5
    x[:, 1] = 300 * x[:, 1] + 2000
    x[:, 2] = 7.0
    return x, y


def options(n: int = 60, k: int = 5, d: int = 6, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Option states (n, k, d) with 2 to k options a row, NaN beyond, and answers."""
    draw = np.random.default_rng(seed)
    x = draw.normal(size=(n, k, d)) + 3
    x[:, :, 2] *= 200
    counts = draw.integers(2, k + 1, size=n)
    y = draw.integers(counts)
    x[np.arange(n), y] += draw.normal(size=d) + 0.5
    for i, count in enumerate(counts):
        x[i, count:] = np.nan
    return x, y


def features_of(x: np.ndarray, classes: int, filler: float = 0.0) -> Features:
    """Float64 features of states with NaN in absent options, which ``filler`` stands for in memory."""
    if x.ndim == 2:
        return Features(x, np.ones((len(x), classes), dtype=bool), torch.float64)
    return Features(np.nan_to_num(x, nan=filler), ~np.isnan(x).any(2), torch.float64)


def training_sets(n: int) -> np.ndarray:
    """Three training sets (3, n) of different sizes."""
    return np.random.default_rng(3).random((3, n)) < np.array([[0.9], [0.6], [0.7]])


def sklearn_logits(x: np.ndarray, y: np.ndarray, l2: float, new: np.ndarray) -> np.ndarray:
    """Standardised by the training rows; scikit-learn sums the losses, hence C = 1 / (n * l2)."""
    scaler = StandardScaler().fit(x)
    model = LogisticRegression(C=1 / (len(x) * l2), tol=1e-12, max_iter=10000).fit(scaler.transform(x), y)
    return np.asarray(scaler.transform(new) @ model.coef_.T + model.intercept_)


def option_scores(x: np.ndarray, y: np.ndarray, l2: float, new: np.ndarray) -> np.ndarray:
    """The option scorer by brute force: one loop over rows, gradient by hand, scipy's L-BFGS."""
    there = x[~np.isnan(x).any(2)]
    mean, scale = there.mean(0), there.std(0)
    each = [(row[~np.isnan(row).any(1)] - mean) / scale for row in x]

    def loss(w: np.ndarray) -> tuple[float, np.ndarray]:
        value, gradient = 0.5 * l2 * w @ w, l2 * w
        for row, gold in zip(each, y, strict=True):
            scores = row @ w
            p = np.exp(scores - scores.max())
            p /= p.sum()
            value -= np.log(p[gold]) / len(y)
            gradient = gradient + (p @ row - row[gold]) / len(y)
        return float(value), gradient

    w = minimize(loss, np.zeros(x.shape[2]), jac=True, method="L-BFGS-B", options={"ftol": 1e-16, "gtol": 1e-10}).x
    return np.asarray((new - mean) / scale @ w)


def centred(logits: np.ndarray) -> np.ndarray:
    """Logits less their row's mean over the options that are there."""
    logits = np.where(np.isfinite(logits), logits, np.nan)
    return np.asarray(logits - np.nanmean(logits, axis=1, keepdims=True))
