"""A fitted reader as one linear map: the mean of linear models is linear, and so is what calibrates it."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch

from probekd.probes.calibrate import one_temperature
from probekd.probes.features import LinearFit
from probekd.probes.probe import Probe
from probekd.probes.unseen import NEVER

# Against the noise of a covariance of few rows, in units of a standardised feature's variance.
_SHRINKAGE = 0.1


@dataclass(frozen=True, kw_only=True)
class LinearMap:
    """x W + b.

    Attributes:
        weight: (d, K), K = 1 for a scorer shared by the options.
        bias: (K,).
    """

    weight: np.ndarray
    bias: np.ndarray

    def __call__(self, states: np.ndarray) -> np.ndarray:
        """(..., K) from (..., d)."""
        return np.asarray(states @ self.weight + self.bias)

    def without_bias(self, states: np.ndarray) -> LinearMap:
        """Nearly the same map with b = 0: W + v b', where x v is as near to 1 as it can be for states like these.

        Minimises the variance of x v where its mean is 1. The states of language models have directions that hardly
        vary beside their mean (2402.17762), which are all but a bias.

        Args:
            states: (n, d).
        """
        mean, scale = states.mean(0), states.std(0)
        scale = np.maximum(scale, 1e-6 * max(float(scale.max()), 1e-30))
        z = (states - mean) / scale / len(states) ** 0.5
        m = mean / scale
        _, spread, axes = np.linalg.svd(z, full_matrices=False)
        along = (1 / (spread**2 + _SHRINKAGE) - 1 / _SHRINKAGE) * (axes @ m)
        u = m / _SHRINKAGE + along @ axes  # (covariance + shrinkage)^-1 m
        v = u / (m @ u) / scale
        return LinearMap(weight=self.weight + np.outer(v, self.bias), bias=np.zeros_like(self.bias))


def linear_map(probe: Probe) -> LinearMap:
    """The calibrated mean of the fold models of a probe that is one linear reader of one depth.

    Its scores are ``Probe.logits``, with three exceptions. What a class that no labelled row has gets there depends on
    the rest of a row; here it has no chance. Where options share a scorer there is one temperature, not one for each
    place in the row. And no linear map has
    a lapse: here is the temperature that fits best by itself.
    """
    ((fit,),) = (tuple(fits.values()) for fits in probe.fits)
    assert isinstance(fit, LinearFit) and not probe.words, "not one linear reader"
    seen = fit.bias.isfinite()  # (P, K): a model says nothing of a class that it never saw
    models = seen.sum(0).clamp_min(1)
    weight = torch.where(seen[:, None, :], fit.weight, 0).double().sum(0) / models
    bias = torch.where(seen, fit.bias, 0).double().sum(0) / models
    calibration = probe.calibration
    of_places = probe.reader.position != "answer" and calibration.kind == "vector scaling"
    if calibration.lapse or of_places:
        calibration = one_temperature(probe.uncalibrated, probe.scored_answers)
    outputs = len(bias)
    sharper = probe.sharpness / probe.flattery
    scale = sharper * probe.weights[0] * calibration.scale[:outputs]
    shift = sharper * calibration.shift[:outputs]
    never = torch.where(seen.any(0), 0.0, NEVER).numpy()
    return LinearMap(weight=weight.numpy() * scale, bias=bias.numpy() * scale + shift + never)
