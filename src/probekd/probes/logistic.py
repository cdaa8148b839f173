"""Logistic probes: K-way on one state a row, and a shared option scorer with a softmax over a row's options.

Both minimise mean cross-entropy + l2/2 * |w|^2 on features standardised with the training rows' statistics (the bias of
the K-way probe is free). For scikit-learn's ``LogisticRegression`` that is C = 1 / (n * l2).

``solve`` fits one depth for many training sets and strengths at once. Training sets are 0/1 weights over the same rows,
so that every problem shares one matrix product with the states; standardisation by a training set's own statistics is
folded into the weights.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from sklearn.base import BaseEstimator, ClassifierMixin
from torch import Tensor

from probekd.probes.lbfgs import minimise

MIN_SCALE = 1e-6


@dataclass(frozen=True, kw_only=True)
class LinearFit:
    """Solutions for P problems at one depth, on raw (not standardised) features.

    Attributes:
        weight: (P, d, K); K = 1 for the option scorer.
        bias: (P, K).
    """

    weight: Tensor
    bias: Tensor

    def logits(self, states: Tensor) -> Tensor:
        """(P, n, K) from (n, d), or (P, n, k) from option states (n, k, d)."""
        if states.ndim == 3:
            return torch.einsum("nkd,pd->pnk", states, self.weight[:, :, 0]) + self.bias[:, :, None]
        return torch.einsum("nd,pdk->pnk", states, self.weight) + self.bias[:, None, :]


def solve(
    states: Tensor, answers: Tensor, present: Tensor, train: Tensor, l2: Tensor, *, tolerance: float
) -> LinearFit:
    """Fit P logistic probes on one depth.

    Args:
        states: (n, d) for K-way probes, or (n, k, d) for the shared option scorer.
        answers: (n,) gold indices.
        present: (n, K) bool: which classes or options a row has.
        train: (P, n) bool: rows that each problem trains on.
        l2: (P,) strengths.
        tolerance: Gradient norm at which a problem is solved, relative to its start.

    Returns:
        Weights that apply to states as they come.
    """
    options = states.ndim == 3
    n, d = states.shape[0], states.shape[-1]
    classes = present.shape[1]
    outputs = 1 if options else classes
    weights = train.to(states.dtype)
    # A first standardisation by all rows keeps the products below well scaled where a state has a large mean or a few
    # massive dimensions; it is affine and label-free, and undone exactly by each training set's own statistics.
    flat = states.reshape(-1, d)
    there = (present.reshape(-1) if options else torch.ones(n, dtype=torch.bool)).to(states.dtype)
    centre, spread = _moments(flat, there[None])
    x = (flat - centre) / spread * there[:, None]
    row_weights = weights.repeat_interleave(classes, dim=1) * there if options else weights
    mean, scale = _moments(x, row_weights)
    counts = weights.sum(1)
    hidden = torch.where(present, 0.0, -torch.inf).to(states.dtype)
    gold = torch.nn.functional.one_hot(answers, classes).to(states.dtype)

    def objective(points: Tensor, which: Tensor) -> tuple[Tensor, Tensor]:
        m = len(which)
        w = points[:, : d * outputs].view(m, d, outputs)
        b = points[:, d * outputs :]
        effective = w / scale[which, :, None]
        offset = (b if not options else 0) - (mean[which, :, None] * effective).sum(1)  # (m, outputs)
        scores = (x @ effective.permute(1, 0, 2).reshape(d, m * outputs)).view(-1, m, outputs).permute(1, 0, 2)
        logits = (scores + offset[:, None, :]).reshape(m, n, classes) + hidden
        logp = torch.log_softmax(logits, dim=2)
        rows = weights[which] / counts[which, None]
        loss = -(torch.where(gold > 0, logp, 0.0).sum(2) * rows).sum(1) + 0.5 * l2[which] * (w**2).sum((1, 2))
        residual = ((logp.exp() - gold) * rows[:, :, None]).reshape(m, -1, outputs)  # (m, rows of x, outputs)
        pulled = (x.T @ residual.permute(1, 0, 2).reshape(-1, m * outputs)).view(d, m, outputs).permute(1, 0, 2)
        total = residual.sum(1)
        gradient = (pulled - mean[which, :, None] * total[:, None, :]) / scale[which, :, None] + l2[
            which, None, None
        ] * w
        parts = [gradient.reshape(m, -1)] if options else [gradient.reshape(m, -1), total]
        return loss, torch.cat(parts, dim=1)

    start = torch.zeros(len(train), d * outputs + (0 if options else outputs), dtype=states.dtype)
    points = minimise(objective, start, tolerance=tolerance)
    w = points[:, : d * outputs].view(-1, d, outputs) / scale[:, :, None]
    bias = -(mean[:, :, None] * w).sum(1) + (0 if options else points[:, d * outputs :])
    raw = w / spread[:, :, None] if spread.ndim == 3 else w / spread.reshape(1, d, 1)
    return LinearFit(weight=raw, bias=bias - (centre.reshape(1, d, 1) * raw).sum(1))


def _moments(x: Tensor, weights: Tensor) -> tuple[Tensor, Tensor]:
    """Weighted mean and standard deviation of (m, d) for each of (P, m) weights; constant dimensions get scale 1."""
    total = weights.sum(1, keepdim=True)
    mean = weights @ x / total
    variance = weights @ x**2 / total - mean**2
    scale = variance.clamp_min(0).sqrt()
    return mean, torch.where(scale > MIN_SCALE, scale, torch.ones_like(scale))


class _Logistic(ClassifierMixin, BaseEstimator):  # type: ignore[misc]
    """Shared by both probes: parameters, one fit, probabilities from logits."""

    def __init__(self, *, l2: float = 0.1, tolerance: float = 1e-6) -> None:
        self.l2 = l2
        self.tolerance = tolerance

    def _solve(self, x: np.ndarray, answers: np.ndarray, present: np.ndarray) -> None:
        everything = torch.ones(1, len(x), dtype=torch.bool)
        fit = solve(
            torch.as_tensor(np.asarray(x, dtype=np.float64)),
            torch.as_tensor(answers),
            torch.as_tensor(present),
            everything,
            torch.tensor([self.l2], dtype=torch.float64),
            tolerance=self.tolerance,
        )
        self.coef_ = fit.weight[0].numpy()
        self.intercept_ = fit.bias[0].numpy()


class LogisticProbe(_Logistic):
    """K-way multinomial logistic probe with the scikit-learn contract; X is (n, d), y any labels."""

    def fit(self, X: np.ndarray, y: np.ndarray) -> LogisticProbe:  # noqa: N803
        """Fit to convergence in float64; learned: ``classes_``, ``coef_`` (d, K), ``intercept_`` (K,)."""
        self.classes_, answers = np.unique(y, return_inverse=True)
        self.n_features_in_ = np.shape(X)[1]
        self._solve(X, answers, np.ones((len(X), len(self.classes_)), dtype=bool))
        return self

    def decision_function(self, X: np.ndarray) -> np.ndarray:  # noqa: N803
        """Logits (n, K)."""
        return np.asarray(np.asarray(X, dtype=np.float64) @ self.coef_ + self.intercept_)

    def predict_proba(self, X: np.ndarray) -> np.ndarray:  # noqa: N803
        """Probabilities (n, K)."""
        return _softmax(self.decision_function(X))

    def predict(self, X: np.ndarray) -> np.ndarray:  # noqa: N803
        """Most probable label of each row."""
        return np.asarray(self.classes_[self.decision_function(X).argmax(1)])


class OptionProbe(_Logistic):
    """One scorer shared by all options, softmax over those a row has.

    X is (n, k, d) with NaN in every feature of the options that a row does not have; y holds 0-based option indices.
    """

    def fit(self, X: np.ndarray, y: np.ndarray) -> OptionProbe:  # noqa: N803
        """Fit to convergence in float64; learned: ``coef_`` (d, 1)."""
        present = ~np.isnan(X).any(axis=2)
        self.n_features_in_ = np.shape(X)[2]
        self.classes_ = np.arange(np.shape(X)[1])
        self._solve(np.nan_to_num(X), np.asarray(y), present)
        return self

    def decision_function(self, X: np.ndarray) -> np.ndarray:  # noqa: N803
        """Scores (n, k); -inf for absent options."""
        scores = np.nan_to_num(X) @ self.coef_[:, 0] + self.intercept_[0]
        return np.where(np.isnan(X).any(axis=2), -np.inf, scores)

    def predict_proba(self, X: np.ndarray) -> np.ndarray:  # noqa: N803
        """Probabilities (n, k); 0 for absent options."""
        return _softmax(self.decision_function(X))

    def predict(self, X: np.ndarray) -> np.ndarray:  # noqa: N803
        """Index of the most probable option of each row."""
        return np.asarray(self.decision_function(X).argmax(1))


def _softmax(logits: np.ndarray) -> np.ndarray:
    shifted = np.exp(logits - logits.max(axis=1, keepdims=True))
    return np.asarray(shifted / shifted.sum(axis=1, keepdims=True))
