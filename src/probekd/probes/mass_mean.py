"""Mass-mean probes: the difference of means as the direction (Marks and Tegmark, 2310.06824), nothing solved.

It is what a logistic or ridge probe becomes as its l2 grows without bound.
"""

from __future__ import annotations

import numpy as np
import torch

from probekd.probes.estimator import KWayEstimator, Linear, OptionEstimator
from probekd.probes.features import Features, LinearFit, raw_fit
from probekd.probes.ridge import products


def solve(features: Features, answers: np.ndarray, train: np.ndarray) -> LinearFit:
    """Fit mass-mean probes on one depth for training sets (T, n): T solutions that apply to states as they come.

    K-way: nearest class mean in the standardised space, with the log of the class's share. Options: the mean difference
    of the gold option's state from its row's mean.
    """
    weights = torch.as_tensor(train)
    mean, scale = features.moments(weights)
    w = torch.zeros(len(train), features.d, features.outputs, dtype=features.dtype)
    b = torch.zeros(len(train), features.outputs, dtype=features.dtype)
    for t, rows in enumerate(weights):
        share, w[t], _ = products(features, answers, rows, mean[t], scale[t], square=False)
        if not features.options:
            share = share.clamp_min(0.5 / int(rows.sum()))  # a class that is missing has no mean: nothing by nothing
            w[t] /= share
            b[t] = share.log() - 0.5 * (w[t] ** 2).sum(0)
    return raw_fit(features, w, b, mean, scale)


class MassMeanProbe(Linear, KWayEstimator):
    """K-way nearest-mean probe. Learned: ``classes_``, ``coef_`` (d, K), ``intercept_`` (K,)."""

    def _solve(self, features: Features, answers: np.ndarray, train: np.ndarray) -> LinearFit:
        return solve(features, answers, train)


class OptionMassMeanProbe(Linear, OptionEstimator):
    """One mean-difference scorer shared by all options. Learned: ``coef_`` (d, 1)."""

    def _solve(self, features: Features, answers: np.ndarray, train: np.ndarray) -> LinearFit:
        return solve(features, answers, train)
