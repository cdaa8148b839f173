from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from words import answer, by_hand, load

from probekd.config import Likelihood, StudentConfig
from probekd.student import distill
from probekd.tasks.base import Task


@pytest.mark.parametrize("likelihood", ["sum", "per token", "per byte"])
def test_every_likelihood_is_that_of_plain_transformers(
    likelihood: Likelihood, model_dir: Callable[[str], Path], choices: Task
) -> None:
    directory = model_dir("qwen3")
    rows = choices.rows("train")
    with torch.no_grad():
        logits = answer(load("option_likelihood", directory, choices, likelihood=likelihood), rows)
    for row, found in zip(rows, logits, strict=True):
        expected = by_hand("option_likelihood", directory, choices, row, likelihood)
        np.testing.assert_allclose(found[: len(row.options)], expected, atol=2e-4)


def test_a_decoder_learns_which_option_to_say(tiny_gpt2: Path, which: Task) -> None:
    config = StudentConfig(
        model=str(tiny_gpt2),
        kind="option_likelihood",
        label_epochs=8,
        early_stopping=None,
        batch_size=8,
        learning_rate=6e-3,
    )
    student = distill(config.model, which, None, method="labels", config=config)
    test = which.rows("test")
    probs = student.predict_proba(test)
    assert [p.shape for p in probs] == [(len(e.options),) for e in test]
    assert np.mean([p.argmax() == e.answer for p, e in zip(probs, test, strict=True)]) >= 0.9
