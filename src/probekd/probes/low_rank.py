"""Low-rank logistic probes for many classes: ridge finds the few directions that tell them apart, logistic reads those.

With K classes and few labels each, K * d weights are too many. The leading principal directions of the ridge's fitted
values are reduced-rank regression's (Izenman 1975), and the logistic problem on them is convex again.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch

from probekd.probes import logistic, ridge
from probekd.probes.estimator import KWayEstimator, Linear
from probekd.probes.features import Features, LinearFit

RANK = 16


def solve(
    features: Features,
    answers: np.ndarray,
    train: np.ndarray,
    strengths: Sequence[float],
    *,
    tolerance: float,
    rank: int = RANK,
) -> LinearFit:
    """Fit K-way probes of a rank on one depth for training sets (T, n) and S strengths, used by both of its halves.

    Returns:
        T * S solutions that apply to states as they come; weights of shape (d, K) and rank at most ``rank``.
    """
    assert not features.options, "an option scorer has rank one already"
    coarse = ridge.solve(features, answers, train, strengths)
    rank = min(rank, features.classes, features.d)
    weight = torch.empty_like(coarse.weight)
    bias = torch.empty_like(coarse.bias)
    said = coarse.logits(features.source)
    for number, coarse_weight in enumerate(coarse.weight):
        t, s = divmod(number, len(strengths))
        fitted = torch.as_tensor(said[number]).to(features.dtype) - coarse.bias[number]
        own = fitted[torch.as_tensor(train[t])]
        # Of the fitted values, not of the weights, which are largest along directions of little variance.
        turn = torch.linalg.svd(own - own.mean(0), full_matrices=False).Vh[:rank].T
        reduced = Features((fitted @ turn).numpy(), features.present.numpy(), features.dtype)
        fine = logistic.solve(reduced, answers, train[t : t + 1], (strengths[s],), tolerance=tolerance)
        weight[number] = coarse_weight @ turn @ fine.weight[0]
        bias[number] = fine.bias[0]
    return LinearFit(weight=weight, bias=bias)


class LowRankProbe(Linear, KWayEstimator):
    """K-way logistic probe of low rank. Learned: ``classes_``, ``coef_`` (d, K) of rank ``rank``, ``intercept_`` (K,)."""

    def __init__(self, *, l2: float = 0.1, rank: int = RANK, tolerance: float = 1e-6) -> None:
        self.l2 = l2
        self.rank = rank
        self.tolerance = tolerance

    def _solve(self, features: Features, answers: np.ndarray, train: np.ndarray) -> LinearFit:
        return solve(features, answers, train, (self.l2,), tolerance=self.tolerance, rank=self.rank)
