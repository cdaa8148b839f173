from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from transformers import AutoModel, AutoTokenizer

from probekd.config import StudentConfig
from probekd.student import frozen_embeddings
from probekd.tasks.base import Task


def oracle(directory: Path, *texts: str) -> np.ndarray:
    """Mean of the last hidden states of one unpadded text or pair."""
    tokenizer, model = AutoTokenizer.from_pretrained(directory), AutoModel.from_pretrained(directory).eval()
    with torch.no_grad():
        states = model(
            **tokenizer(*texts, return_tensors="pt", truncation="only_first", max_length=12)
        ).last_hidden_state
    return states[0].mean(dim=0).numpy()


def test_classification_equals_a_row_by_row_oracle(tiny_bert: Path, kinds: Task) -> None:
    config = StudentConfig(model=str(tiny_bert), max_length=12)
    rows = kinds.rows("train")[::3]
    found = frozen_embeddings(tiny_bert, rows, "classification", config=config, batch_size=5)
    assert found.shape == (len(rows), 1, 32)
    assert found.dtype == np.float32
    np.testing.assert_allclose(found[:, 0], [oracle(tiny_bert, e.question) for e in rows], atol=1e-5)


def test_multiple_choice_equals_a_row_by_row_oracle_and_is_zero_beyond(tiny_bert: Path, which: Task) -> None:
    config = StudentConfig(model=str(tiny_bert), max_length=12)
    rows = which.rows("test")[:12]
    found = frozen_embeddings(tiny_bert, rows, "multiple_choice", config=config, batch_size=5)
    assert found.shape == (12, 4, 32)
    for example, vectors in zip(rows, found, strict=True):
        k = len(example.options)
        expected = [oracle(tiny_bert, example.question, option) for option in example.options]
        np.testing.assert_allclose(vectors[:k], expected, atol=1e-5)
        assert (vectors[k:] == 0).all()


def test_a_decoder_gives_its_last_token(tiny_gpt2: Path, kinds: Task) -> None:
    config = StudentConfig(model=str(tiny_gpt2))
    rows = kinds.rows("train")[::6]
    found = frozen_embeddings(tiny_gpt2, rows, "classification", config=config, batch_size=4)
    tokenizer, model = AutoTokenizer.from_pretrained(tiny_gpt2), AutoModel.from_pretrained(tiny_gpt2).eval()
    for example, vector in zip(rows, found[:, 0], strict=True):
        with torch.no_grad():
            states = model(**tokenizer(example.question, return_tensors="pt")).last_hidden_state
        np.testing.assert_allclose(vector, states[0, -1].numpy(), atol=1e-5)
