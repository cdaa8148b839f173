"""The families of probes by name, as cross-fitting calls them: training sets and strengths in, fits out."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol, Self

import numpy as np
import torch
from torch import Tensor

from probekd.config import Family
from probekd.probes import logistic, low_rank, mass_mean, mlp, ridge
from probekd.probes.features import Features, LinearFit, StateBlocks
from probekd.probes.mlp import MLPFit
from probekd.probes.unseen import class_counts

MLP_L2 = (0.001, 0.01)


class Fit(Protocol):
    """P fitted models of one depth: a frozen dataclass of tensors whose first axis is the model."""

    def logits(self, states: np.ndarray | StateBlocks) -> np.ndarray:
        """(P, n, K) float32; -inf for a class that a model never saw."""
        ...

    def without(self, unseen: Tensor) -> Self:
        """The same, but that classes marked in (P, K) bool are never said."""
        ...


@dataclass(frozen=True, kw_only=True)
class Problem:
    """What to fit at one depth.

    Attributes:
        features: Of all n rows.
        answers: (n,) gold indices.
        train: (T, n) bool training sets.
        folds: (n,) fold of each row.
        strengths: S strengths.
        tolerance: See ``logistic.solve``.
    """

    features: Features
    answers: np.ndarray
    train: np.ndarray
    folds: np.ndarray
    strengths: Sequence[float]
    tolerance: float


def _logistic(p: Problem) -> LinearFit:
    return logistic.solve(p.features, p.answers, p.train, p.strengths, tolerance=p.tolerance)


def _low_rank(p: Problem) -> LinearFit:
    return low_rank.solve(p.features, p.answers, p.train, p.strengths, tolerance=p.tolerance)


_SOLVERS: Mapping[Family, Callable[[Problem], Fit]] = {
    "logistic": _logistic,
    "ridge": lambda p: ridge.solve(p.features, p.answers, p.train, p.strengths),
    "mass_mean": lambda p: mass_mean.solve(p.features, p.answers, p.train),
    "low_rank": _low_rank,
    "mlp": lambda p: mlp.solve(p.features, p.answers, p.train, p.folds, p.strengths),
}
_FITS: Mapping[Family, type[LinearFit] | type[MLPFit]] = {"mlp": MLPFit}


def strengths_of(family: Family, l2: tuple[float, ...]) -> tuple[float, ...]:
    """Strengths that a family tries when the config names ``l2``; a mass mean has none, which is written 0."""
    if family == "mass_mean":
        return (0.0,)
    return MLP_L2 if family == "mlp" else l2


def applies(family: Family, *, options: bool, classes: int) -> bool:
    """Whether a family has anything to offer: a low rank needs more classes than that rank."""
    return family != "low_rank" or (not options and classes > low_rank.RANK)


def solve(family: Family, problem: Problem) -> Fit:
    """Fit T * S models of a family; a K-way model says nothing (-inf) of a class that its training set does not have."""
    fit = _SOLVERS[family](problem)
    if problem.features.options:
        return fit
    unseen = class_counts(problem.answers, problem.train, problem.features.classes) == 0
    return fit.without(torch.as_tensor(unseen).repeat_interleave(len(problem.strengths), dim=0))


def fit_from_arrays(family: Family, arrays: Mapping[str, Tensor]) -> Fit:
    """The fit of a family whose tensors were saved by name."""
    return _FITS.get(family, LinearFit)(**arrays)
