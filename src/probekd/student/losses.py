"""The student's loss: gold labels where there are any, the teacher's distribution everywhere."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy, log_softmax, softmax

UNLABELLED = -100


def soft_kl(logits: Tensor, target_logits: Tensor, temperature: float) -> Tensor:
    """KL(target || student) of each row at a temperature, in nats, shape (b,).

    ``KL = sum_j p_j (log p_j - log q_j)`` with ``p = softmax(target_logits / T)`` and ``q = softmax(logits / T)``.

    Args:
        logits: Student, shape (b, k); -inf where the row has no such option.
        target_logits: Target, shape (b, k); -inf where its probability is 0, which includes every absent option.
        temperature: T > 0.
    """
    target = softmax(target_logits.float() / temperature, dim=-1)  # (b, k)
    log_student = log_softmax(logits.float() / temperature, dim=-1)  # (b, k)
    # 0 * log 0 is 0 in a divergence, but nan in floats: absent options leave the sum before the product is formed.
    log_student = log_student.masked_fill(target == 0, 0.0)
    divergence: Tensor = torch.special.xlogy(target, target) - target * log_student  # (b, k)
    return divergence.sum(dim=-1)


def distillation_loss(
    logits: Tensor, target_logits: Tensor, answers: Tensor, *, alpha: float, temperature: float
) -> Tensor:
    """Mean loss over the rows of a batch, a scalar in float32.

    A labelled row's loss is ``alpha * CE(gold) + (1 - alpha) * T^2 * KL(target || student)``; a pool row's is
    ``T^2 * KL`` alone. T^2 undoes the 1/T^2 by which softening shrinks the gradient (Hinton et al., arXiv 1503.02531,
    section 2). Options are summed and rows averaged, so a row's weight does not depend on how many options it has.

    Args:
        logits: Student, shape (b, k); -inf where the row has no such option.
        target_logits: Target, shape (b, k); -inf where its probability is 0.
        answers: Gold indices, shape (b,); ``UNLABELLED`` for pool rows.
        alpha: Weight of the gold label on labelled rows.
        temperature: T of the divergence; the cross-entropy is always at 1.
    """
    gold = cross_entropy(logits.float(), answers, ignore_index=UNLABELLED, reduction="none")  # (b,), 0 in the pool
    soft = temperature**2 * soft_kl(logits, target_logits, temperature)  # (b,)
    soft_weight = torch.where(answers == UNLABELLED, 1.0, 1.0 - alpha)
    return (alpha * gold + soft_weight * soft).mean()
