"""Logits of rows in tokens, from a student of any kind."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch

from probekd.student.inputs import Encoded, row_batches
from probekd.student.kinds.base import Answering


def row_logits(kind: Answering, encoded: Sequence[Encoded], *, batch_size: int = 64) -> list[np.ndarray]:
    """Logits of each row, float32 of shape (k_i,); the network is put into evaluation mode.

    Args:
        kind: A loaded student, or what answers in its place.
        encoded: What its ``encode`` gave.
        batch_size: Token sequences a batch.
    """
    network = kind.network.eval()
    found: dict[int, np.ndarray] = {}
    with torch.inference_mode():
        for indices in row_batches(encoded, batch_size):
            batch = kind.collate([encoded[i] for i in indices])
            batch = {name: tensor.to(network.device) for name, tensor in batch.items()}
            found |= dict(zip(indices, kind.logits(network, batch).cpu().numpy(), strict=True))
    return [found[i] for i in range(len(encoded))]


def padded(logits: Sequence[np.ndarray]) -> np.ndarray:
    """Rows of different numbers of options as float64 (n, K), -inf where a row has no such option."""
    result = np.full((len(logits), max(map(len, logits))), -np.inf)
    for row, values in zip(result, logits, strict=True):
        row[: len(values)] = values
    return result
