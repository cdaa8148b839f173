"""Weights that let sure targets count for more."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from probekd.errors import DataError
from probekd.targets import softmax


def confidence_weights(target_logits: Sequence[np.ndarray]) -> np.ndarray:
    """``w_i = c_i / mean(c)`` with ``c_i = 1 - H(p_i) / log k_i``: float64 of shape (n,), of mean one.

    A one-hot target has c = 1, an even one c = 0. The mean is over all rows that are trained on and not over a batch, so
    a row weighs the same whatever rows it meets, and the loss keeps its scale.

    Args:
        target_logits: Target of every training row at temperature 1, (k_i,) with k_i >= 2.

    Raises:
        DataError: every target is even, so that none is surer than another.
    """
    sure = np.array([1 - _entropy(softmax(row)) / np.log(len(row)) for row in target_logits]).clip(min=0)
    if sure.mean() < 1e-9:
        raise DataError(
            "every target is an even guess, so none is sure enough to learn from; leave confidence_weights off"
        )
    return np.asarray(sure / sure.mean())


def _entropy(p: np.ndarray) -> float:
    return float(-(p * np.log(np.where(p > 0, p, 1))).sum())
