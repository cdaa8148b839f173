"""Forward KL: the student has to cover all that the target holds possible."""

from __future__ import annotations

from torch import Tensor


def forward_kl(log_target: Tensor, log_student: Tensor) -> Tensor:
    """``KL(p || q) = sum_j p_j (log p_j - log q_j)``, the divergence of Hinton et al. (arXiv 1503.02531).

    Args:
        log_target: log p, (b, k).
        log_student: log q, (b, k).
    """
    return (log_target.exp() * (log_target - log_student)).sum(dim=-1)
