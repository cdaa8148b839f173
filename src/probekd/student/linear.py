"""The linear student's learning: a convex problem on frozen embeddings, solved to convergence at every strength at once."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from probekd.probes.calibrate import gold_losses
from probekd.probes.crossfit import CHOOSING_TOLERANCE
from probekd.probes.features import Features, LinearFit
from probekd.probes.logistic import solve_soft
from probekd.student.losses import UNLABELLED

TOLERANCE = 1e-5


@dataclass(frozen=True, kw_only=True, eq=False)
class Lesson:
    """Rows and what is known of them.

    Attributes:
        features: Embeddings of N rows, labelled ones and pool.
        targets: (N, K) logits of the targets at temperature 1, -inf where the probability is 0.
        answers: (N,) gold indices, ``UNLABELLED`` in the pool.
    """

    features: Features
    targets: np.ndarray
    answers: np.ndarray

    @property
    def labelled(self) -> np.ndarray:
        """(N,) bool."""
        return np.asarray(self.answers != UNLABELLED)

    def mixed(self, *, alpha: float, temperature: float) -> np.ndarray:
        """(N, K) distributions to learn: softened targets, on labelled rows with the share ``alpha`` of the gold label.

        The cross-entropy to a mixture is the mixture of cross-entropies, so this is the loss of ``losses`` but for one
        thing: a linear student is not softened along with its targets, since its strength already sets its scale.
        """
        there = np.isfinite(self.targets)
        scaled = np.where(there, self.targets, -np.inf) / temperature
        soft = np.exp(scaled - scaled.max(1, keepdims=True))
        soft /= soft.sum(1, keepdims=True)
        rows = np.flatnonzero(self.labelled)
        soft[rows] *= 1 - alpha
        soft[rows, self.answers[rows]] += alpha
        return np.asarray(soft)


def fit_linear(lesson: Lesson, probs: np.ndarray, strengths: Sequence[float]) -> LinearFit:
    """Heads at each strength, learned from all rows; ``probs`` (N, K) as ``Lesson.mixed`` gives them."""
    return solve_soft(lesson.features, probs, np.ones((1, lesson.features.n)), strengths, tolerance=TOLERANCE)


def held_out_losses(lesson: Lesson, probs: np.ndarray, folds: np.ndarray, strengths: Sequence[float]) -> np.ndarray:
    """Log-loss (S, n) of each labelled row at each strength, by heads that did not learn from its fold.

    Args:
        lesson: The rows.
        probs: (N, K) what they are to say.
        folds: (n,) of the labelled rows, in their order.
        strengths: S strengths.
    """
    labelled = np.flatnonzero(lesson.labelled)
    count = int(folds.max()) + 1
    weights = np.ones((count, lesson.features.n))
    for f in range(count):
        weights[f, labelled[folds == f]] = 0
    fit = solve_soft(lesson.features, probs, weights, strengths, tolerance=CHOOSING_TOLERANCE)
    present = lesson.features.present.numpy()
    said = np.where(present, fit.logits(lesson.features.source)[:, :, : present.shape[1]], -np.inf)
    own = said.reshape(count, len(strengths), *present.shape)[folds, :, labelled]  # (n, S, K)
    return gold_losses(own.transpose(1, 0, 2), lesson.answers[labelled])
