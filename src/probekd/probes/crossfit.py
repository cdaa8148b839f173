"""Cross-fitting: every labelled row is predicted by a model that never saw it, and chosen for by rows that are not it.

Strictly nested choice needs, for each outer fold f, models that saw neither f nor the inner fold g they predict. The
model that leaves {f, g} out serves both (f, g) and (g, f), so F folds need F + F(F-1)/2 fits and not F + F(F-1).

Rows of fold -1 train every model and are predicted by none; the m rows that are scored are those of the other folds.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations

import numpy as np

from probekd.config import Family
from probekd.probes.families import Fit, Problem, solve
from probekd.probes.features import Features, StateBlocks
from probekd.probes.unseen import class_counts, unseen_shares

# Models that leave two folds out only choose: their log-loss is right to far more digits than a choice needs.
CHOOSING_TOLERANCE = 1e-3


@dataclass(frozen=True, kw_only=True)
class CrossFit:
    """Predictions of C candidates for the m scored rows.

    Attributes:
        outer: (C, m, K) logits of each row from the model that left its fold out; -inf for absent options, and for
            classes that the model never saw.
        inner: (F, C, m, K): as ``outer``, from models that also left fold f out; rows of f itself are NaN.
        unseen: (F, m, K) probabilities of classes that the model of ``inner`` (for rows of f itself: of ``outer``) never
            saw, as ``unseen_shares`` gives them; None where every model saw every class.
    """

    outer: np.ndarray
    inner: np.ndarray
    unseen: np.ndarray | None = None

    def __post_init__(self) -> None:
        assert self.outer.shape == self.inner.shape[1:], (self.outer.shape, self.inner.shape)

    def one(self, candidate: int) -> CrossFit:
        """The predictions of one candidate, C = 1."""
        return CrossFit(outer=self.outer[[candidate]], inner=self.inner[:, [candidate]], unseen=self.unseen)

    @property
    def shares(self) -> np.ndarray:
        """``unseen``, or as many zeros."""
        return np.broadcast_to(0.0, self.inner[:, 0].shape) if self.unseen is None else self.unseen


def unseen_by(inner: np.ndarray, folds: np.ndarray) -> np.ndarray:
    """(F - 1, n, K): what the models that left out a row's fold and one more say of it, from ``inner`` (F, n, K)."""
    other = np.arange(len(inner) - 1)[:, None]
    return np.asarray(inner[other + (other >= folds), np.arange(len(folds))])


def untrained(logits: np.ndarray, folds: np.ndarray) -> CrossFit:
    """Candidates (C, m, K) that used no labels: the same predictions in every fold."""
    inner = np.stack([np.where((folds == f)[None, :, None], np.nan, logits) for f in range(folds.max() + 1)])
    return CrossFit(outer=logits, inner=inner)


def concatenate(parts: Sequence[CrossFit]) -> CrossFit:
    """One set of candidates from several, cross-fitted on the same rows."""
    return CrossFit(
        outer=np.concatenate([p.outer for p in parts]),
        inner=np.concatenate([p.inner for p in parts], axis=1),
        # Those whose models saw every class have no -inf for a share to stand in for.
        unseen=next((p.unseen for p in parts if p.unseen is not None), None),
    )


def average(parts: Sequence[CrossFit]) -> CrossFit:
    """The candidates whose logits are the mean of those of several: neighbouring depths, for one."""
    if len(parts) == 1:
        return parts[0]
    outer, inner = parts[0].outer.copy(), parts[0].inner.copy()
    for part in parts[1:]:
        outer += part.outer
        inner += part.inner
    return CrossFit(outer=outer / len(parts), inner=inner / len(parts), unseen=parts[0].unseen)


def crossfit(
    states: np.ndarray | StateBlocks,
    answers: np.ndarray,
    present: np.ndarray,
    folds: np.ndarray,
    strengths: Sequence[float],
    *,
    tolerance: float,
    family: Family = "logistic",
) -> CrossFit:
    """Cross-fit probes of a family on one depth; candidate order follows ``strengths``.

    Args:
        states: (n, d) or (n, k, d) float32.
        answers: (n,) gold indices.
        present: (n, K) bool.
        folds: (n,) fold of each row, -1 for those that are not scored.
        strengths: Of the penalty.
        tolerance: See ``logistic.solve``.
        family: Family of probes.
    """
    count = int(folds.max()) + 1
    features = Features(states, present)
    pairs = list(combinations(range(count), 2))

    def logits(left_out: Sequence[tuple[int, ...]], tolerance: float) -> np.ndarray:
        train = np.stack([~np.isin(folds, out) for out in left_out])
        problem = Problem(
            features=features, answers=answers, train=train, folds=folds, strengths=strengths, tolerance=tolerance
        )
        said = solve(family, problem).logits(features.source)[:, :, : present.shape[1]]
        return np.where(present, said, -np.inf).reshape(len(left_out), len(strengths), *present.shape)

    own = folds[folds >= 0]
    singles = logits([(f,) for f in range(count)], tolerance)
    outer = np.empty((len(strengths), len(own), present.shape[1]), dtype=np.float32)
    for f in range(count):
        outer[:, own == f] = singles[f][:, folds == f]
    inner = np.full((count, *outer.shape), np.nan, dtype=np.float32)
    for out, said in zip(pairs, logits(pairs, max(tolerance, CHOOSING_TOLERANCE)), strict=True):
        for f, g in (out, out[::-1]):
            inner[f][:, own == g] = said[:, folds == g]
    return CrossFit(outer=outer, inner=inner, unseen=None if features.options else _unseen(answers, present, folds))


def _unseen(answers: np.ndarray, present: np.ndarray, folds: np.ndarray) -> np.ndarray | None:
    """``CrossFit.unseen`` of K-way probes."""
    scored, count = folds >= 0, int(folds.max()) + 1
    found = np.empty((count, int(scored.sum()), present.shape[1]))
    for f in range(count):
        train = np.stack([~np.isin(folds, (f, g)) for g in range(count)])
        found[f] = unseen_shares(class_counts(answers, train, present.shape[1])[folds[scored]], present[scored])
    return found if found.any() else None


def fit_folds(
    states: np.ndarray | StateBlocks,
    answers: np.ndarray,
    present: np.ndarray,
    folds: np.ndarray,
    strength: float,
    *,
    tolerance: float,
    family: Family = "logistic",
) -> Fit:
    """The F models at one strength that each leave one fold out; -inf for a class that a model never saw."""
    train = np.stack([folds != f for f in range(int(folds.max()) + 1)])
    problem = Problem(
        features=Features(states, present),
        answers=answers,
        train=train,
        folds=folds,
        strengths=(strength,),
        tolerance=tolerance,
    )
    return solve(family, problem)
