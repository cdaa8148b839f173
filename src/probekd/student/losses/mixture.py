"""A row's loss: the gold label where there is one, the target where there is one, each with the row's own weight."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from probekd.student.losses.base import Divergence, log_probs
from probekd.student.losses.cross_entropy import gold_loss


@dataclass(frozen=True, slots=True, kw_only=True)
class RowWeights:
    """What a row's terms count for.

    Attributes:
        gold: Of the cross-entropy with the gold label.
        soft: Of the divergence from the target.
    """

    gold: float
    soft: float


def mix(*, alpha: float, labelled: bool, confidence: float = 1.0) -> RowWeights:
    """Weights of a row that has a target: alpha and the rest of it if it is labelled, all on the target if not.

    Args:
        alpha: Weight of the gold label.
        labelled: Whether the row has a gold label.
        confidence: Its target's confidence (``confidence_weights``); a gold label is no less true where it is low.
    """
    gold = alpha if labelled else 0.0
    return RowWeights(gold=gold, soft=(1 - gold) * confidence)


def row_losses(
    logits: Tensor,
    target_logits: Tensor,
    answers: Tensor,
    gold_weights: Tensor,
    soft_weights: Tensor,
    *,
    divergence: Divergence,
    temperature: float,
) -> Tensor:
    """``gold_weight * CE + soft_weight * T^2 * D(target, student)`` of each row, (b,) in float32.

    T^2 undoes the 1/T^2 by which softening shrinks the gradient (Hinton et al., arXiv 1503.02531, section 2). Options
    are summed, so a row's weight does not depend on how many it has; rows are not averaged here, since only the trainer
    knows how many a step has in all.

    Args:
        logits: Student, (b, k); -inf where the row has no such option.
        target_logits: Target at temperature 1, (b, k); -inf likewise.
        answers: Gold indices, (b,); any option's where the gold weight is 0.
        gold_weights: (b,).
        soft_weights: (b,).
        divergence: D, at temperature T for both sides.
        temperature: T > 0; the cross-entropy is always at 1.
    """
    soft = temperature**2 * divergence(log_probs(target_logits, temperature), log_probs(logits, temperature))
    return gold_weights * gold_loss(logits, answers) + soft_weights * soft
