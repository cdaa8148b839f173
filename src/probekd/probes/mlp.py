"""MLP probes: one small hidden layer, stopped early on inner folds, the best weights kept.

Not convex: used where it wins out-of-fold. Capacity is kept small because a large probe reads what is not there
(Hewitt and Liang, 1909.03368).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from probekd.probes.estimator import KWayEstimator, OptionEstimator, ProbeEstimator
from probekd.probes.features import Features, StateBlocks, as_blocks
from probekd.probes.unseen import NEVER, class_counts

HIDDEN = 32
STEPS = 300
PATIENCE = 40
LEARNING_RATE = 3e-3


@dataclass(frozen=True, kw_only=True)
class MLPFit:
    """P networks on raw features: (P, d, h), (P, h), (P, h, outputs), (P, outputs).

    ``bias_out`` is -inf for a class that a network never saw.
    """

    weight_in: Tensor
    bias_in: Tensor
    weight_out: Tensor
    bias_out: Tensor

    def without(self, unseen: Tensor) -> MLPFit:
        """The same, but that classes marked in (P, outputs) bool are never said."""
        return replace(self, bias_out=self.bias_out.masked_fill(unseen, -torch.inf))

    def logits(self, states: np.ndarray | StateBlocks) -> np.ndarray:
        """(P, n, K) float32 from (n, d), or (P, n, k) from (n, k, d)."""
        source = as_blocks(states)
        out = []
        for _, block in source.blocks():
            x = torch.as_tensor(block).to(self.weight_in.dtype)
            hidden = torch.relu(torch.einsum("...d,pdh->p...h", x, self.weight_in) + _lift(self.bias_in, x.ndim))
            scores = torch.einsum("p...h,pho->p...o", hidden, self.weight_out) + _lift(self.bias_out, x.ndim)
            out.append((scores[..., 0] if x.ndim == 3 else scores).numpy())
        return np.concatenate(out, axis=1).astype(np.float32)


def _lift(bias: Tensor, dimensions: int) -> Tensor:
    return bias.view(len(bias), *(1,) * (dimensions - 1), -1)


def solve(
    features: Features,
    answers: np.ndarray,
    train: np.ndarray,
    folds: np.ndarray,
    strengths: Sequence[float],
    *,
    hidden: int = HIDDEN,
    seed: int = 0,
) -> MLPFit:
    """Train T * S networks on one depth by Adam on all rows, each with its own stopping point.

    Args:
        features: Of all rows.
        answers: (n,) gold indices.
        train: (T, n) bool.
        folds: (n,) folds of the rows; the first fold of a training set is what it is stopped on and not fitted to, and of a
            set of one fold every fifth row. Rows of fold -1, which are the only ones of their class, are always fitted to.
        strengths: S values of l2, on both layers.
        hidden: Width of the hidden layer.
        seed: Of the first weights, the same for every problem.
    """
    sets, count, d, outputs = len(train), len(strengths), features.d, features.outputs
    problems = sets * count
    weights = torch.as_tensor(train)
    held = torch.as_tensor(np.stack([_stopping(rows, folds) for rows in train]))
    fitted, held = (_shares(m, features).repeat_interleave(count, dim=0) for m in (weights & ~held, held))
    mean, scale = (m.repeat_interleave(count, dim=0) for m in features.moments(weights))
    l2 = torch.tensor(tuple(strengths), dtype=features.dtype).repeat(sets)
    generator = torch.Generator().manual_seed(seed)
    first = torch.randn(d, hidden, generator=generator, dtype=features.dtype) / d**0.5
    second = torch.randn(hidden, outputs, generator=generator, dtype=features.dtype) / hidden**0.5
    parameters = [
        first.repeat(problems, 1, 1),
        torch.zeros(problems, 1, hidden, dtype=features.dtype),
        0.1 * second.repeat(problems, 1, 1),
        torch.zeros(problems, 1, outputs, dtype=features.dtype),
    ]
    if not features.options:
        unseen = torch.as_tensor(class_counts(answers, train, outputs) == 0).repeat_interleave(count, dim=0)
        parameters[3][unseen[:, None]] = NEVER
    for p in parameters:
        p.requires_grad_()
    x = torch.cat([block for _, block in features.blocks()])
    absent = torch.where(features.present, 0.0, -torch.inf).to(features.dtype)
    gold = torch.as_tensor(answers).expand(problems, -1)[:, :, None]
    optimiser = torch.optim.Adam(parameters, lr=LEARNING_RATE)
    best = [p.detach().clone() for p in parameters]
    lowest = torch.full((problems,), torch.inf, dtype=features.dtype)
    since = torch.zeros(problems, dtype=torch.long)
    for _ in range(STEPS):
        w1, b1, w2, b2 = parameters
        effective = w1 / scale[:, :, None]
        inside = torch.relu(torch.matmul(x, effective) + b1 - mean[:, None, :] @ effective)
        scores = (torch.bmm(inside, w2) + b2).view(problems, features.n, -1) + absent
        losses = -torch.log_softmax(scores, dim=2).gather(2, gold)[:, :, 0]
        # Stopped on what the weights give before this step, so these weights are the ones to keep.
        stop = (losses.detach() * held).sum(1)
        better = stop < lowest
        for kept, p in zip(best, parameters, strict=True):
            kept[better] = p.detach()[better]
        lowest = torch.where(better, stop, lowest)
        since = torch.where(better, 0, since + 1)
        if bool((since > PATIENCE).all()):
            break
        penalty = 0.5 * l2 * ((w1**2).sum((1, 2)) + (w2**2).sum((1, 2)))
        optimiser.zero_grad()
        ((losses * fitted).sum(1) + penalty).sum().backward()
        optimiser.step()
    w1, b1, w2, b2 = best
    raw = w1 / scale[:, :, None] / features.spread[None, :, None]
    shift = (mean / scale)[:, None, :] @ w1 + features.centre[None, None, :] @ raw
    return MLPFit(weight_in=raw, bias_in=(b1 - shift)[:, 0], weight_out=w2, bias_out=b2[:, 0])


def _stopping(rows: np.ndarray, folds: np.ndarray) -> np.ndarray:
    """(n,) bool: the rows of a training set, (n,) bool, that it is stopped on."""
    own = rows & (folds >= 0)
    numbers = np.unique(folds[own])
    if len(numbers) > 1:
        return np.asarray(own & (folds == numbers[0]))
    chosen = np.zeros_like(own)
    chosen[np.flatnonzero(own)[::5]] = True
    return chosen


def _shares(rows: Tensor, features: Features) -> Tensor:
    return rows.to(features.dtype) / rows.sum(1, keepdim=True)


class _MLPEstimator(ProbeEstimator):
    """A random fifth of the rows stops the training. Learned: ``classes_``, ``fit_``."""

    def __init__(self, *, l2: float = 0.01, hidden: int = HIDDEN, seed: int = 0) -> None:
        self.l2 = l2
        self.hidden = hidden
        self.seed = seed

    def _learn(self, features: Features, answers: np.ndarray) -> None:
        folds = np.random.default_rng(self.seed).permutation(features.n) % 5
        train = np.ones((1, features.n), dtype=bool)
        self.fit_ = solve(features, answers, train, folds, (self.l2,), hidden=self.hidden, seed=self.seed)

    def _scores(self, x: np.ndarray) -> np.ndarray:
        return np.asarray(self.fit_.logits(x)[0])


class MLPProbe(_MLPEstimator, KWayEstimator):
    """K-way MLP probe; X is (n, d), y any labels."""


class OptionMLPProbe(_MLPEstimator, OptionEstimator):
    """One MLP scorer shared by all options; X is (n, k, d) with NaN for absent options, y 0-based option indices."""
