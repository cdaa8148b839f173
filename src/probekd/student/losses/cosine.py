"""Cosine distance of hidden states: their direction counts, not their length."""

from __future__ import annotations

import torch
from torch import Tensor


def cosine_distance(student: Tensor, teacher: Tensor) -> Tensor:
    """``1 - s . t / (|s| |t|)``, half the squared distance of the normalised states (Patient-KD, arXiv 1908.09355, eq. 7).

    Args:
        student: Projected states, (..., d).
        teacher: Standardised states, (..., d).
    """
    return 1 - torch.cosine_similarity(student.float(), teacher.float(), dim=-1)
