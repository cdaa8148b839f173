from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import AutoModelForSequenceClassification, AutoTokenizer

from probekd.config import StudentConfig
from probekd.student import distill
from probekd.tasks.base import Task


@pytest.mark.parametrize("family", ["llama", "llama-tied", "qwen2", "gemma3"])
def test_a_decoder_with_a_head_reads_the_last_token_of_its_text(
    family: str, model_dir: Callable[[str], Path], kinds_of_text: Task
) -> None:
    """Against its own body and head, one text at a time and nothing padded."""
    config = StudentConfig(
        model=str(model_dir(family)), label_epochs=2, early_stopping=None, batch_size=2, learning_rate=1e-3
    )
    student = distill(config.model, kinds_of_text, None, method="labels", config=config)
    tokenizer = AutoTokenizer.from_pretrained(student.directory)
    saved = json.loads((student.directory / "config.json").read_text())
    assert saved["pad_token_id"] == tokenizer.pad_token_id is not None
    plain = AutoModelForSequenceClassification.from_pretrained(student.directory).eval()
    rows = kinds_of_text.rows("train")
    for row, probs in zip(rows, student.predict_proba(rows), strict=True):
        with torch.no_grad():
            ids = tokenizer(row.question, return_tensors="pt")["input_ids"]
            logits = plain.score(plain.model(ids).last_hidden_state[0, -1])
        np.testing.assert_allclose(probs, logits.softmax(-1), atol=1e-5)


def test_what_stands_after_a_text_in_its_batch_changes_nothing(
    model_dir: Callable[[str], Path], kinds_of_text: Task
) -> None:
    config = StudentConfig(model=str(model_dir("llama")), label_epochs=1, early_stopping=None)
    student = distill(config.model, kinds_of_text, None, method="labels", config=config)
    short = kinds_of_text.rows("train")[2]
    alone = student.predict_proba([short])[0]
    for words in (3, 30):
        beside = student.predict_proba([short, replace(short, question="cow " * words)])[0]
        np.testing.assert_allclose(beside, alone, atol=1e-6)
