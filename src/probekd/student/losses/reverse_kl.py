"""Reverse KL: the student may leave options out, and pays for each that the target holds impossible."""

from __future__ import annotations

from torch import Tensor


def reverse_kl(log_target: Tensor, log_student: Tensor) -> Tensor:
    """``KL(q || p) = sum_j q_j (log q_j - log p_j)`` (MiniLLM, arXiv 2306.08543, equation 1).

    It is infinite where p_j = 0 < q_j, so targets must give every option of a row a probability.

    Args:
        log_target: log p, (b, k).
        log_student: log q, (b, k).
    """
    return (log_student.exp() * (log_student - log_target)).sum(dim=-1)
