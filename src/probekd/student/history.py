"""What a training has gone through, epoch by epoch, and what follows from it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class Epoch:
    """One pass over the training rows.

    Attributes:
        epoch: Passes so far; not a whole number where training ends within one.
        steps: Steps so far.
        loss: Mean over the epoch's steps.
        log_loss: On the held-out rows at the end of the epoch, calibrated, in nats; None without such rows.
        accuracy: On the same.
    """

    epoch: float
    steps: int
    loss: float
    log_loss: float | None = None
    accuracy: float | None = None


def best_epoch(history: Sequence[Epoch]) -> int:
    """Index of the epoch with the lowest log-loss, the earliest of equals; the last one where nothing was held out."""
    losses = [epoch.log_loss for epoch in history if epoch.log_loss is not None]
    return losses.index(min(losses)) if losses else len(history) - 1


def has_stopped_gaining(history: Sequence[Epoch], patience: int) -> bool:
    """Whether ``patience`` epochs have passed since the best one."""
    return len(history) - 1 - best_epoch(history) >= patience


def mean_loss(history: Sequence[Epoch]) -> float:
    """Mean training loss over all steps."""
    starts = [0, *(epoch.steps for epoch in history)]
    weights = [epoch.steps - start for epoch, start in zip(history, starts, strict=False)]
    return sum(e.loss * w for e, w in zip(history, weights, strict=True)) / sum(weights)
