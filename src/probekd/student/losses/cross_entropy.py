"""Cross-entropy with the gold label."""

from __future__ import annotations

from torch import Tensor

from probekd.student.losses.base import log_probs


def gold_loss(logits: Tensor, answers: Tensor) -> Tensor:
    """``CE = -log q_gold`` of each row in nats, (b,), with ``q = softmax(logits)``.

    Args:
        logits: Student, (b, k); -inf where the row has no such option.
        answers: Gold indices, (b,).
    """
    return -log_probs(logits).gather(-1, answers[:, None])[:, 0]
