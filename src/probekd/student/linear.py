"""The linear student's learning: a convex problem on frozen embeddings, solved to convergence at every strength at once."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from probekd.probes.features import Features, LinearFit
from probekd.probes.logistic import solve_soft
from probekd.student.losses import UNLABELLED
from probekd.targets import SoftTargets
from probekd.tasks.base import Example

TOLERANCE = 1e-5


@dataclass(frozen=True, kw_only=True, eq=False)
class LinearRows:
    """Rows that a linear student may learn from.

    Attributes:
        examples: N rows, labelled ones and pool.
        features: Their embeddings.
    """

    examples: tuple[Example, ...]
    features: Features

    @classmethod
    def of(cls, examples: Sequence[Example], embeddings: np.ndarray) -> LinearRows:
        """Rows from embeddings as ``frozen_embeddings`` gives them: (N, 1, d), or (N, k, d) of options."""
        states, present = as_states(embeddings, examples)
        return cls(examples=tuple(examples), features=Features(states, present))

    @property
    def answers(self) -> np.ndarray:
        """(N,) gold indices, ``UNLABELLED`` in the pool."""
        return np.array([UNLABELLED if e.answer is None else e.answer for e in self.examples])

    def fit(self, targets: SoftTargets, strengths: Sequence[float], *, alpha: float, temperature: float) -> LinearFit:
        """Learn from those of the rows that have a target; one problem for each strength.

        The loss is that of ``distill`` but for one thing: the student is not softened along with its targets, since its
        strength sets its scale already.

        Args:
            targets: Of some of the rows.
            strengths: Of the penalty.
            alpha: Weight of the gold label on labelled rows.
            temperature: Of the targets.
        """
        probs = np.zeros((len(self.examples), self.features.classes))
        weights = np.zeros(len(self.examples))
        logits = targets.by_id()
        for i, (example, answer) in enumerate(zip(self.examples, self.answers, strict=True)):
            if example.id in logits:
                k = len(example.options)
                probs[i, :k] = mixed(logits[example.id], answer, alpha=alpha, temperature=temperature)
                weights[i] = 1
        return solve_soft(self.features, probs, weights[None], strengths, tolerance=TOLERANCE)


def mixed(logits: np.ndarray, answer: int, *, alpha: float, temperature: float) -> np.ndarray:
    """Distribution (k,) that a row is to learn: its softened target, and on a labelled row the share alpha of its gold label.

    The cross-entropy to a mixture is the mixture of the cross-entropies.
    """
    soft = np.exp((logits - logits.max()) / temperature)
    soft /= soft.sum()
    if answer != UNLABELLED:
        soft *= 1 - alpha
        soft[answer] += alpha
    return np.asarray(soft)


def answer_rows(fit: LinearFit, embeddings: np.ndarray, examples: Sequence[Example]) -> np.ndarray:
    """Logits (S, n, K) of rows by each of S heads, -inf beyond a row's options."""
    states, present = as_states(embeddings, examples)
    said = fit.logits(states)[:, :, : present.shape[1]]
    return np.where(present, said, -np.inf)


def as_states(embeddings: np.ndarray, examples: Sequence[Example]) -> tuple[np.ndarray, np.ndarray]:
    """Embeddings as solvers want them, (n, d) or (n, K, d), and which options each row has (n, K)."""
    width = max(len(e.options) for e in examples)
    present = np.arange(width) < np.array([len(e.options) for e in examples])[:, None]
    one = embeddings.shape[1] == 1
    return np.ascontiguousarray(embeddings[:, 0] if one else embeddings[:, :width]), present
