"""What the student's encoder knows before any training: the gate's view of the student by itself."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from probekd.config import StudentConfig
from probekd.student.inputs import Encoded, encode, map_sequences
from probekd.student.load import is_decoder, load_encoder, load_tokenizer, usable_length
from probekd.tasks.base import Example, Kind
from probekd.teacher.load import quiet_transformers


class Embedder(torch.nn.Module):
    """An encoder with its pooling: the mean over the text's tokens of its last hidden state; of a decoder the last token's."""

    def __init__(self, encoder: Any) -> None:
        super().__init__()
        self.encoder = encoder
        self.last = is_decoder(encoder.config)

    @property
    def width(self) -> int:
        """D."""
        return int(self.encoder.config.hidden_size)

    def forward(self, **batch: Tensor) -> Tensor:
        """Embeddings (b, d) of right-padded sequences (b, tokens)."""
        return pooled(self.encoder(**batch).last_hidden_state, batch["attention_mask"], last=self.last)


def frozen_embeddings(
    model: str | Path, task_rows: Sequence[Example], kind: Kind, *, config: StudentConfig, batch_size: int = 64
) -> np.ndarray:
    """Embed rows with the untouched encoder, on the same inputs that the student is given.

    Args:
        model: A local Transformers directory or a Hub id.
        task_rows: At least one row; answers are not looked at.
        kind: Decides the inputs: the question, or (question, option) pairs.
        config: Gives ``max_length``, ``revision`` and ``trust_remote_code``.
        batch_size: Token sequences a batch.

    Returns:
        float32 of shape (n, 1, d) for classification, (n, k_max, d) for multiple choice, zero beyond a row's options.

    Raises:
        ModelError: a checkpoint that cannot be used.
        DataError: an option too long for ``max_length``.
    """
    tokenizer = load_tokenizer(model, config)
    encoder = load_encoder(model, config)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    embedder = Embedder(encoder).to(device)
    with quiet_transformers():
        max_length = usable_length(tokenizer, encoder.config, config.max_length)
        encoded = encode(tokenizer, task_rows, kind, max_length)
        return embed_encoded(embedder, tokenizer, encoded, batch_size=batch_size)


def embed_encoded(embedder: Embedder, tokenizer: Any, rows: Sequence[Encoded], *, batch_size: int = 64) -> np.ndarray:
    """``frozen_embeddings`` of rows in tokens, by an encoder that is loaded."""
    sequences = [sequence for row in rows for sequence in row.sequences]
    device = next(embedder.parameters()).device
    vectors = map_sequences(lambda b: embedder(**b), tokenizer, sequences, batch_size=batch_size, device=device)
    counts = np.array([len(row.sequences) for row in rows])
    result = np.zeros((len(rows), counts.max(), vectors.shape[1]), dtype=np.float32)
    result[np.arange(counts.max()) < counts[:, None]] = vectors
    return result


def pooled(states: Tensor, mask: Tensor, *, last: bool) -> Tensor:
    """One state a sequence, (b, d): the mean over its tokens, or its last token's.

    Args:
        states: (b, tokens, d), padded on the right.
        mask: 1 for each token that is there, (b, tokens).
        last: Take the last token's.
    """
    if last:
        return states[torch.arange(len(states), device=states.device), mask.sum(dim=1) - 1]
    weights = mask.unsqueeze(-1).to(states.dtype)
    return (states * weights).sum(dim=1) / weights.sum(dim=1)
