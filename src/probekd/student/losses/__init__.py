"""Losses of a student, one file each; ``row_losses`` puts them together, and a config names them here."""

from __future__ import annotations

from probekd.config import DivergenceName, HiddenLossName
from probekd.student.losses.base import Divergence, HiddenLoss
from probekd.student.losses.confidence import confidence_weights
from probekd.student.losses.cosine import cosine_distance
from probekd.student.losses.cross_entropy import gold_loss
from probekd.student.losses.forward_kl import forward_kl
from probekd.student.losses.jensen_shannon import jensen_shannon
from probekd.student.losses.mixture import RowWeights, mix, row_losses
from probekd.student.losses.reverse_kl import reverse_kl
from probekd.student.losses.squared_error import squared_error

DIVERGENCES: dict[DivergenceName, Divergence] = {
    "forward_kl": forward_kl,
    "reverse_kl": reverse_kl,
    "jensen_shannon": jensen_shannon,
}
HIDDEN_LOSSES: dict[HiddenLossName, HiddenLoss] = {"cosine": cosine_distance, "mse": squared_error}

__all__ = [
    "DIVERGENCES",
    "HIDDEN_LOSSES",
    "RowWeights",
    "confidence_weights",
    "cosine_distance",
    "forward_kl",
    "gold_loss",
    "jensen_shannon",
    "mix",
    "reverse_kl",
    "row_losses",
    "squared_error",
]
