from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from probekd.config import StudentConfig
from probekd.errors import DataError
from probekd.student import distill
from probekd.student.kinds.label_token import LabelToken
from probekd.tasks.base import Example, Task


def test_a_decoder_learns_to_say_the_label(tiny_gpt2: Path, kinds: Task) -> None:
    config = StudentConfig(
        model=str(tiny_gpt2), kind="label_token", label_epochs=20, early_stopping=None, batch_size=8, learning_rate=6e-3
    )
    student = distill(config.model, kinds, None, method="labels", config=config)
    test = kinds.rows("test")
    probs = student.predict_proba(test)
    assert np.mean([p.argmax() == e.answer for p, e in zip(probs, test, strict=True)]) >= 0.9
    one_by_one = [student.predict_proba([e])[0] for e in test[::4]]
    np.testing.assert_allclose(probs[::4], one_by_one, atol=1e-5)


def test_labels_that_begin_alike_are_refused(model_dir: Callable[[str], Path], kinds_of_text: Task) -> None:
    labels = ("animal", "tool", "tools of old")
    row = Example(id="t", question="the red cow", options=labels)
    config = StudentConfig(model=str(model_dir("llama")))
    student = LabelToken.prepare(config.model, replace(kinds_of_text, splits={"train": (row,)}, labels=labels), config)
    with pytest.raises(DataError, match=r"row 't': the labels 'tool' and 'tools of old' begin with the same token"):
        student.encode([row])
