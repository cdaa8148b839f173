"""Mean squared error of hidden states."""

from __future__ import annotations

from torch import Tensor


def squared_error(student: Tensor, teacher: Tensor) -> Tensor:
    """``|s - t|^2 / d`` (FitNets, arXiv 1412.6550, equation 3): 1 for a student that says the mean of standardised states.

    Args:
        student: Projected states, (..., d).
        teacher: Standardised states, (..., d).
    """
    return (student.float() - teacher.float()).square().mean(dim=-1)
