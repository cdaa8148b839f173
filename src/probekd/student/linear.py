"""The linear student's learning: a convex problem on frozen embeddings, solved to convergence at every strength at once."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from probekd.probes.features import Features, LinearFit
from probekd.probes.logistic import solve_soft
from probekd.probes.unseen import unseen_shares
from probekd.student.lessons import Lesson

TOLERANCE = 1e-5


@dataclass(frozen=True, kw_only=True, eq=False)
class LinearRows:
    """Embeddings of N rows to learn from.

    Attributes:
        features: One embedding a row, or one an option.
    """

    features: Features

    @classmethod
    def of(cls, embeddings: np.ndarray, counts: Sequence[int]) -> LinearRows:
        """Rows from embeddings as ``frozen_embeddings`` gives them, with so many options each."""
        return cls(features=Features(*as_states(embeddings, counts)))

    def fit(
        self,
        lessons: Sequence[Lesson],
        strengths: Sequence[float],
        *,
        temperature: float,
        train: np.ndarray | None = None,
    ) -> LinearFit:
        """Learn what each row teaches; a row that teaches nothing plays no part.

        The loss is ``losses.row_losses`` with forward KL, but for one thing: the student is not softened along with its
        targets, since its strength sets its scale already. The cross-entropy to a mixture is the mixture of cross-entropies.

        Args:
            lessons: N.
            strengths: S strengths of the penalty.
            temperature: Of the targets.
            train: (T, N) bool training sets; None = all rows.

        Returns:
            T * S heads.
        """
        probs = np.zeros((len(lessons), self.features.classes))
        weights = np.empty(len(lessons))
        for i, lesson in enumerate(lessons):
            weights[i], probs[i, : len(lesson.target_logits)] = mixture(lesson, temperature)
        sets = weights[None] if train is None else weights * train
        if not self.features.options:
            probs = _with_unseen(probs, weights)
        return solve_soft(self.features, probs, sets, strengths, tolerance=TOLERANCE)


def _with_unseen(probs: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """Targets in which classes that no row speaks of have the share that ``unseen_shares`` gives them, in every row.

    Without it their probability would go to zero, as slowly as the solver is patient, and one such row among those to come
    would cost a fortune.
    """
    spoken = weights @ probs
    counts = np.where(spoken > 0, np.maximum(np.round(spoken), 1), 0)
    shares = unseen_shares(counts[None], np.ones((1, len(counts)), dtype=bool))[0]
    return np.asarray(probs * (1 - shares.sum()) + shares)


def mixture(lesson: Lesson, temperature: float) -> tuple[float, np.ndarray]:
    """What a row counts for, and the distribution (k,) that it is to say: its softened target mixed with its gold label."""
    soft = np.exp((lesson.target_logits - lesson.target_logits.max()) / temperature)
    soft *= lesson.weights.soft / soft.sum()
    soft[lesson.answer] += lesson.weights.gold
    weight = lesson.weights.soft + lesson.weights.gold
    return weight, soft / weight if weight else soft


def answer_rows(fit: LinearFit, embeddings: np.ndarray, counts: Sequence[int]) -> np.ndarray:
    """Logits (S, n, K) of rows by each of S heads, -inf beyond a row's options."""
    states, present = as_states(embeddings, counts)
    said = fit.logits(states)[:, :, : present.shape[1]]
    return np.where(present, said, -np.inf)


def as_states(embeddings: np.ndarray, counts: Sequence[int]) -> tuple[np.ndarray, np.ndarray]:
    """Embeddings as solvers want them, (n, d) or (n, K, d), and which options each row has, (n, K)."""
    width = max(counts)
    present = np.arange(width) < np.asarray(counts)[:, None]
    one = embeddings.shape[1] == 1
    return np.ascontiguousarray(embeddings[:, 0] if one else embeddings[:, :width]), present
