"""hidden-kd for a student that is frozen: its embedding, mapped to the teacher's hidden state that it predicts best.

Where a trained student moves its states towards the teacher's (FitNets, arXiv 1412.6550), a linear student cannot. What is
left is the other half of the idea: regress the teacher's states on the embedding over all rows, which takes no labels, and
learn the labels from the predicted states. Directions of the embedding that say nothing of the teacher's states are lost.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

STRENGTHS = tuple(10.0**power for power in range(0, 7))


@dataclass(frozen=True, kw_only=True)
class Projection:
    """An affine map of embeddings.

    Attributes:
        weight: (d, D).
        bias: (D,).
    """

    weight: np.ndarray
    bias: np.ndarray

    @classmethod
    def identity(cls, width: int) -> Projection:
        """The map that changes nothing."""
        return cls(weight=np.eye(width), bias=np.zeros(width))

    def folded(self, weight: np.ndarray, bias: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """A head (D, K), (K,) on predicted states as one on embeddings: (d, K), (K,)."""
        return self.weight @ weight, self.bias @ weight + bias

    def apply(self, embeddings: np.ndarray) -> np.ndarray:
        """Predicted states (..., D) of embeddings (..., d), float32."""
        return np.asarray(embeddings @ self.weight + self.bias, dtype=np.float32)


def fit_projection(embeddings: np.ndarray, states: Sequence[np.ndarray]) -> Projection:
    """Ridge regression, its strength chosen by leave-one-out error.

    Args:
        embeddings: (n, 1, d), or (n, k, d) of options.
        states: The teacher's state of each row, (D,), or (k_i, D) of its options.
    """
    from sklearn.linear_model import RidgeCV

    y = np.concatenate([np.atleast_2d(state) for state in states])
    x = np.concatenate([row[: len(np.atleast_2d(state))] for row, state in zip(embeddings, states, strict=True)])
    x, y = x.astype(np.float64), y.astype(np.float64)
    centre, spread = x.mean(0), np.maximum(x.std(0), 1e-6)
    # Of the same spread each, or the teacher's few massive dimensions would be all that is matched (2402.17762).
    mean, scale = y.mean(0), np.maximum(y.std(0), 1e-6)
    fit = RidgeCV(alphas=STRENGTHS).fit((x - centre) / spread, (y - mean) / scale)
    weight = fit.coef_.T / spread[:, None]
    return Projection(weight=weight, bias=fit.intercept_ - centre @ weight)
