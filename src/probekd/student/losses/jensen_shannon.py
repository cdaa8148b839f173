"""Jensen-Shannon divergence: symmetric, and never more than log 2, so that one wrong target cannot rule a batch."""

from __future__ import annotations

import math

import torch
from torch import Tensor


def jensen_shannon(log_target: Tensor, log_student: Tensor) -> Tensor:
    """``JS(p, q) = (KL(p || m) + KL(q || m)) / 2`` with ``m = (p + q) / 2`` (Lin 1991, IEEE Trans. Inf. Theory 37).

    Args:
        log_target: log p, (b, k).
        log_student: log q, (b, k).
    """
    log_mean = torch.logaddexp(log_target, log_student) - math.log(2)
    terms = log_target.exp() * (log_target - log_mean) + log_student.exp() * (log_student - log_mean)
    return terms.sum(dim=-1) / 2
