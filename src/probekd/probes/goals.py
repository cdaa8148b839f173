"""Goals: what the rows of a logistic problem are to say, a class each or a distribution each."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor


class Goal(Protocol):
    """The target t of every row, whose cross-entropy is logsumexp(z) - sum_j t_j z_j."""

    def at(self, rows: Tensor) -> Goal:
        """The goal of some rows (r,), in their order."""
        ...

    def said(self, logits: Tensor, rows: slice) -> Tensor:
        """sum_j t_j z_j, (rows, m), of a block's finite logits (rows, K, m)."""
        ...

    def subtract(self, p: Tensor, weight: Tensor, rows: slice) -> None:
        """Take ``weight`` (rows, m) times the target from ``p`` (rows, K, m), in place."""
        ...

    def mass(self, weights: Tensor, classes: int) -> Tensor:
        """(T, classes) what the rows of training sets of weights (T, n) say of each class in all."""
        ...


@dataclass(frozen=True)
class Answers:
    """One class a row, (n,)."""

    gold: Tensor

    def at(self, rows: Tensor) -> Answers:
        """Of some rows."""
        return Answers(self.gold[rows])

    def said(self, logits: Tensor, rows: slice) -> Tensor:
        """The gold class's logit."""
        return logits[torch.arange(len(logits)), self.gold[rows]]

    def subtract(self, p: Tensor, weight: Tensor, rows: slice) -> None:
        """From the gold class alone."""
        p[torch.arange(len(p)), self.gold[rows]] -= weight

    def mass(self, weights: Tensor, classes: int) -> Tensor:
        """Weighted rows of each class."""
        return torch.zeros(len(weights), classes, dtype=weights.dtype).index_add_(1, self.gold, weights)


@dataclass(frozen=True)
class Distributions:
    """A distribution over the classes a row, (n, K), 0 for classes that a row does not have."""

    probs: Tensor

    def at(self, rows: Tensor) -> Distributions:
        """Of some rows."""
        return Distributions(self.probs[rows])

    def said(self, logits: Tensor, rows: slice) -> Tensor:
        """The mean logit."""
        return torch.bmm(self.probs[rows, None, :], logits)[:, 0]

    def subtract(self, p: Tensor, weight: Tensor, rows: slice) -> None:
        """From every class its share."""
        p.addcmul_(self.probs[rows, :, None], weight[:, None, :], value=-1)

    def mass(self, weights: Tensor, classes: int) -> Tensor:
        """Weighted probabilities of each class."""
        return weights @ self.probs
