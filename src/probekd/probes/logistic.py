"""Logistic probes: K-way on one state a row, and a shared option scorer, both with a softmax over the options a row has.

Both minimise mean cross-entropy + l2/2 * |w|^2 on features standardised with the training rows' statistics (the bias of
the K-way probe is free). For scikit-learn's ``LogisticRegression`` that is C = 1 / (n * l2).

``solve`` fits one depth for many training sets and strengths at once, ``solve_soft`` to distributions in place of gold
labels. Training sets are weights over the same rows, so that every problem shares one matrix product with the states;
standardisation by a training set's own statistics is folded into the weights. With many classes the weights of all these
problems are more than a processor's caches hold, and training sets are solved one by one (``own_axes``).
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from probekd.probes.estimator import KWayEstimator, Linear, OptionEstimator
from probekd.probes.features import Features, LinearFit, raw_fit, repeat_strengths
from probekd.probes.goals import Answers, Distributions, Goal
from probekd.probes.lbfgs import Preconditioner, minimise
from probekd.probes.own_axes import OwnAxes, own_axes_pay
from probekd.probes.unseen import NEVER


def solve(
    features: Features, answers: np.ndarray, train: np.ndarray, strengths: Sequence[float], *, tolerance: float
) -> LinearFit:
    """Fit logistic probes on one depth.

    Args:
        features: Of all rows.
        answers: (n,) gold indices.
        train: (T, n) bool: the training sets.
        strengths: S values of l2.
        tolerance: Gradient norm at which a problem is solved, relative to its start.

    Returns:
        T * S solutions that apply to states as they come.
    """
    return _solve(features, Answers(torch.as_tensor(answers)), train, strengths, tolerance)


def solve_soft(
    features: Features, targets: np.ndarray, weights: np.ndarray, strengths: Sequence[float], *, tolerance: float
) -> LinearFit:
    """Fit to the cross-entropy of target distributions; otherwise as ``solve``.

    Args:
        features: Of all rows.
        targets: (n, K) probabilities, 0 for options that a row does not have.
        weights: (T, n), not negative: of each row in each training set. A weight of 2 is the row twice.
        strengths: S values of l2.
        tolerance: Gradient norm at which a problem is solved, relative to its start.
    """
    goal = Distributions(torch.as_tensor(targets).to(features.dtype))
    return _solve(features, goal, weights, strengths, tolerance)


def _solve(
    features: Features, goal: Goal, row_weights: np.ndarray, strengths: Sequence[float], tolerance: float
) -> LinearFit:
    weights = torch.as_tensor(row_weights).to(features.dtype)
    mean, scale = features.moments(weights)
    if own_axes_pay(features, weights, len(strengths)):
        each = [
            _solve_turned(features, goal, w, m, s, strengths, tolerance)
            for w, m, s in zip(weights, mean, scale, strict=True)
        ]
        w, b = (torch.cat(part) for part in zip(*each, strict=True))
    else:
        w, b = _minimised(features, goal, weights, mean, scale, strengths, tolerance)
    return raw_fit(features, w, b, *(m.repeat_interleave(len(strengths), dim=0) for m in (mean, scale)))


def _solve_turned(
    features: Features,
    goal: Goal,
    weights: Tensor,
    mean: Tensor,
    scale: Tensor,
    strengths: Sequence[float],
    tolerance: float,
) -> tuple[Tensor, Tensor]:
    """``_minimised`` of one training set, weights (n,), in the axes of its own rows: turning weights keeps their norm."""
    turned = OwnAxes.of(features, weights, mean, scale)
    zero, one = torch.zeros(1, turned.d, dtype=features.dtype), torch.ones(1, turned.d, dtype=features.dtype)
    own = weights[turned.rows][None]
    w, b = _minimised(turned, goal.at(turned.rows), own, zero, one, strengths, tolerance)
    return turned.axes @ w, b


def _minimised(
    features: Features | OwnAxes,
    goal: Goal,
    weights: Tensor,
    means: Tensor,
    scales: Tensor,
    strengths: Sequence[float],
    tolerance: float,
) -> tuple[Tensor, Tensor]:
    """Weights (P, d, outputs) on features standardised by means and scales (T, d), and biases (P, outputs)."""
    sets, count = len(weights), len(strengths)
    mean, scale = (m.repeat_interleave(count, dim=0) for m in (means, scales))
    share = weights / weights.sum(1, keepdim=True)  # a row's weight in its training set's mean loss
    l2 = repeat_strengths(strengths, sets, features.dtype)
    absent, ragged = torch.where(features.present, 0.0, -torch.inf).to(features.dtype), not features.present.all()
    d, outputs, classes = features.d, features.outputs, features.classes
    bias = 0 if features.options else outputs
    # A class that a training set does not have takes no part: no gradient moves it from where it starts.
    unseen = (goal.mass(weights, classes) == 0).repeat_interleave(count, dim=0)
    # Mean eigenvalue of diag(p) - p p' across the classes, of each problem where it was last looked at.
    curvature = torch.ones(len(l2), dtype=features.dtype)
    # What it would be with even probabilities: (n, 1) by a row's options, or (1, problems) by a training set's classes.
    options = 1 - 1 / features.present.sum(1, keepdim=True)
    uniform = options if features.options else (classes - unseen.sum(1) - 1).clamp_min(1)[None]

    def objective(points: Tensor, which: Tensor) -> tuple[Tensor, Tensor]:
        m = len(which)
        w = points[:, : d * outputs].view(m, outputs, d)
        effective = w / scale[which, None, :]
        offset = points[:, d * outputs :] - (mean[which, None, :] * effective).sum(2) if bias else None
        columns = effective.permute(2, 1, 0).reshape(d, outputs * m)
        loss = 0.5 * l2[which] * (w**2).sum((1, 2))
        pulled = torch.zeros(d, outputs * m, dtype=features.dtype)
        total = torch.zeros(outputs, m, dtype=features.dtype)
        bend = torch.zeros(m, dtype=features.dtype)
        for rows, x in features.blocks():
            # Rows, then options, then problems: the softmax runs over the middle and problems lie side by side.
            logits = (x @ columns).view(-1, classes, m)
            if offset is not None:
                logits += offset.T
            said = goal.said(logits, rows)  # while logits are finite: 0 times -inf is not 0
            if ragged:
                logits += absent[rows, :, None]
            top = logits.amax(1, keepdim=True)
            said = said - top[:, 0]
            p = logits.sub_(top).exp_()
            norm = p.sum(1, keepdim=True)
            weight = share[which // count, rows].T  # (rows, m)
            loss = loss + ((norm[:, 0].log() - said) * weight).sum(0)
            p /= norm
            even = uniform[rows] if features.options else uniform[:, which]
            bend += ((1 - (p**2).sum(1)) / even * weight).sum(0)
            p *= weight[:, None, :]
            goal.subtract(p, weight, rows)
            pulled += x.T @ p.view(-1, outputs * m)
            if bias:
                total += p.sum(0)
        curvature[which] = bend.clamp_min(1e-6)
        pulled = pulled.view(d, outputs, m).permute(2, 1, 0)
        centred = pulled - mean[which, None, :] * total.T[:, :, None] if bias else pulled
        gradient = centred / scale[which, None, :] + l2[which, None, None] * w
        parts = [gradient.reshape(m, outputs * d)]  # states that are all one have no axes
        return loss, torch.cat([*parts, total.T], dim=1) if bias else parts[0]

    start = torch.zeros(sets * count, d * outputs + bias, dtype=features.dtype)
    if bias:
        start[:, d * outputs :][unseen] = NEVER
    points = minimise(
        objective,
        start,
        tolerance=tolerance,
        precondition=_inverse_hessian(features, l2, curvature),
        floor=torch.finfo(features.dtype).eps,
    )
    w = points[:, : d * outputs].view(len(points), outputs, d).transpose(1, 2)
    b = points[:, d * outputs :] if bias else torch.zeros(len(points), 1, dtype=features.dtype)
    return w, b


def _inverse_hessian(features: Features | OwnAxes, l2: Tensor, curvature: Tensor) -> Preconditioner:
    """A guess of every problem's inverse Hessian: (curvature * covariance + l2)^-1 for the weights of each class.

    Exact where all rows are equally sure of all classes; Böhning (1992) bounds the Hessian by it. The covariance is one
    for all training sets, which differ too little to pay for a factorisation each, and ``curvature`` follows the
    problem's own probabilities.
    """
    size = features.d * features.outputs
    if isinstance(features, OwnAxes):
        variances = features.variance

        def rescale(vectors: Tensor, which: Tensor) -> Tensor:
            w = vectors[:, :size].view(len(which), features.outputs, features.d)
            w = w / (curvature[which, None, None] * variances + l2[which, None, None])
            return torch.cat([w.flatten(1), vectors[:, size:] / curvature[which, None]], dim=1)

        return rescale
    axes, variance, rest = features.principal_axes

    def precondition(vectors: Tensor, which: Tensor) -> Tensor:
        strength, bend = l2[which, None, None], curvature[which, None, None]
        w = vectors[:, :size].view(len(which), features.outputs, features.d)
        along = w @ axes  # no axes at all where all states are one, as an embedding of the prompt's last token
        along *= 1 / (bend * variance + strength) - 1 / (bend * rest + strength)
        w = w / (bend * rest + strength) + along @ axes.T
        return torch.cat([w.flatten(1), vectors[:, size:] / curvature[which, None]], dim=1)

    return precondition


class LogisticProbe(Linear, KWayEstimator):
    """K-way multinomial logistic probe with the scikit-learn contract; X is (n, d), y any labels.

    Learned: ``classes_``, ``coef_`` (d, K), ``intercept_`` (K,).
    """

    def __init__(self, *, l2: float = 0.1, tolerance: float = 1e-6) -> None:
        self.l2 = l2
        self.tolerance = tolerance

    def _solve(self, features: Features, answers: np.ndarray, train: np.ndarray) -> LinearFit:
        return solve(features, answers, train, (self.l2,), tolerance=self.tolerance)


class OptionProbe(Linear, OptionEstimator):
    """One logistic scorer shared by all options, softmax over those a row has. Learned: ``coef_`` (d, 1)."""

    def __init__(self, *, l2: float = 0.1, tolerance: float = 1e-6) -> None:
        self.l2 = l2
        self.tolerance = tolerance

    def _solve(self, features: Features, answers: np.ndarray, train: np.ndarray) -> LinearFit:
        return solve(features, answers, train, (self.l2,), tolerance=self.tolerance)
