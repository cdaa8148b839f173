"""Ridge probes in closed form: least squares on the answers' indicators, which is shrinkage LDA up to a scale.

The loss of a training set is mean squared error / 2 + l2/2 * |w|^2 on standardised features; of the option scorer, on
features and indicators centred within each row, so that only what tells a row's options apart counts. One
eigendecomposition a training set serves all strengths, on the smaller of its two sides (rows or dimensions).
Discriminants by optimal scoring: Hastie, Tibshirani and Buja (1994).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
import torch
from torch import Tensor

from probekd.probes.estimator import KWayEstimator, Linear, OptionEstimator
from probekd.probes.features import Features, LinearFit, principal, raw_fit


def solve(features: Features, answers: np.ndarray, train: np.ndarray, strengths: Sequence[float]) -> LinearFit:
    """Fit ridge probes on one depth for training sets (T, n) and S strengths.

    Args:
        features: Of all rows.
        answers: (n,) gold indices.
        train: (T, n) bool.
        strengths: S values of l2.

    Returns:
        T * S solutions that apply to states as they come.
    """
    weights = torch.as_tensor(train)
    mean, scale = features.moments(weights)
    w = torch.empty(len(train), len(strengths), features.d, features.outputs, dtype=features.dtype)
    b = torch.zeros(len(train), features.outputs, dtype=features.dtype)
    for t, rows in enumerate(weights):
        states = int(rows.sum()) * (features.classes if features.options else 1)
        if states >= features.d:
            b[t], pull, square = products(features, answers, rows, mean[t], scale[t], square=True)
            variance, axes = torch.linalg.eigh(square)
            variance = variance.clamp_min(0)
        else:
            x, y, b[t] = design(features, answers, rows, mean[t], scale[t])
            axes, variance = principal(x)
            pull = x.T @ y
        along = axes.T @ pull
        for s, l2 in enumerate(strengths):
            w[t, s] = axes @ (along / (variance + l2)[:, None])
    count = len(strengths)
    every = (v.repeat_interleave(count, dim=0) for v in (b, mean, scale))
    return raw_fit(features, w.flatten(0, 1), *every)


def leave_one_out(features: Features, answers: np.ndarray, l2: float) -> np.ndarray:
    """Scores (n, K) of each row from the ridge fitted without it, exactly, by the hat matrix.

    What stays as it was with all rows: the standardisation, and the penalty's total weight n * l2.
    """
    everything = torch.ones(features.n, dtype=torch.bool)
    mean, scale = (m[0] for m in features.moments(everything[None]))
    x, y, _ = design(features, answers, everything, mean, scale)
    axes, variance = principal(x)
    turned = x @ axes
    # Of the hat matrix left @ turned', which is as large as the rows squared, only what a row says of itself is made.
    left = turned / (variance + l2)
    if not features.options:
        mean_target = _indicators(features, answers).mean(0)
        target = y * features.n**0.5 + mean_target
        own = (left * turned).sum(1, keepdim=True) + 1 / features.n  # the free bias
        said = left @ (turned.T @ target) + mean_target
        return np.asarray((said - own * target) / (1 - own))
    k = features.classes
    fitted, target = (left @ (turned.T @ y)).view(-1, k), y.view(-1, k)
    blocks = torch.einsum("nir,njr->nij", left.view(features.n, k, -1), turned.view(features.n, k, -1))
    without = torch.linalg.solve(
        torch.eye(k, dtype=x.dtype) - blocks, (fitted - (blocks @ target[:, :, None])[:, :, 0])
    )
    counts = features.present.sum(1, keepdim=True).to(x.dtype)
    scores = without * (counts * features.n).sqrt()
    return np.asarray(torch.where(features.present, scores, -torch.inf))


def design(
    features: Features, answers: np.ndarray, rows: Tensor, mean: Tensor, scale: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """Features and targets of a training set, weighted so that x' x and x' y are its means; and the bias they leave.

    Returns:
        x (states, d), y (states, outputs), bias (outputs,).
    """
    bias = _bias(features, answers, rows)
    xs, ys = zip(*_weighted(features, answers, rows, mean, scale, bias), strict=True)
    return torch.cat(xs), torch.cat(ys), bias


def products(
    features: Features, answers: np.ndarray, rows: Tensor, mean: Tensor, scale: Tensor, *, square: bool
) -> tuple[Tensor, Tensor, Tensor]:
    """What ``design`` gives, multiplied block by block: no second copy of the states is made.

    Returns:
        bias (outputs,), x' y (d, outputs), x' x (d, d), or (d, 0) unless ``square``.
    """
    bias = _bias(features, answers, rows)
    pull = torch.zeros(features.d, features.outputs, dtype=features.dtype)
    squared = torch.zeros(features.d, features.d if square else 0, dtype=features.dtype)
    for x, y in _weighted(features, answers, rows, mean, scale, bias):
        pull += x.T @ y
        if square:
            squared += x.T @ x
    return bias, pull, squared


def _bias(features: Features, answers: np.ndarray, rows: Tensor) -> Tensor:
    if features.options:
        return torch.zeros(features.outputs, dtype=features.dtype)
    return _indicators(features, answers)[rows].mean(0)


def _weighted(
    features: Features, answers: np.ndarray, rows: Tensor, mean: Tensor, scale: Tensor, bias: Tensor
) -> Iterator[tuple[Tensor, Tensor]]:
    """The blocks of ``design``."""
    said = _indicators(features, answers)
    root = int(rows.sum()) ** 0.5
    for where, block in features.blocks():
        inside = rows[where]
        if features.options:
            there = features.present[where].to(features.dtype)
            target = (said[where] - there / there.sum(1, keepdim=True)) / there.sum(1, keepdim=True).sqrt()
            x = features.centred(where, block).view(-1, features.classes, features.d)[inside].flatten(0, 1)
            y = (target * there)[inside].reshape(-1, 1)
        else:
            x, y = block[inside] - mean, said[where][inside] - bias
        yield x / scale / root, y / root


def _indicators(features: Features, answers: np.ndarray) -> Tensor:
    return torch.nn.functional.one_hot(torch.as_tensor(answers), features.classes).to(features.dtype)


class RidgeProbe(Linear, KWayEstimator):
    """K-way ridge probe; ``decision_function`` gives its fitted indicators, to be calibrated by a temperature.

    Learned: ``classes_``, ``coef_`` (d, K), ``intercept_`` (K,), ``loo_`` (n, K): see ``leave_one_out``.
    """

    def __init__(self, *, l2: float = 0.1) -> None:
        self.l2 = l2

    def _solve(self, features: Features, answers: np.ndarray, train: np.ndarray) -> LinearFit:
        self.loo_ = leave_one_out(features, answers, self.l2)
        return solve(features, answers, train, (self.l2,))


class OptionRidgeProbe(Linear, OptionEstimator):
    """One ridge scorer shared by all options. Learned: ``coef_`` (d, 1), ``loo_`` (n, k)."""

    def __init__(self, *, l2: float = 0.1) -> None:
        self.l2 = l2

    def _solve(self, features: Features, answers: np.ndarray, train: np.ndarray) -> LinearFit:
        self.loo_ = leave_one_out(features, answers, self.l2)
        return solve(features, answers, train, (self.l2,))
