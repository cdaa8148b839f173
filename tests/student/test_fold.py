from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from transformers import pipeline
from words import IN_WORDS, load

from probekd.config import KindName, LoraConfig, StudentConfig
from probekd.student import distill
from probekd.student.checkpoint import copy_of
from probekd.student.fold import fold_temperature
from probekd.student.kinds.head import Head
from probekd.student.logits import row_logits
from probekd.student.trainer import seeded
from probekd.targets import softmax
from probekd.tasks.base import Kind, Task

HEADS = [
    ("bert", "classification"),
    ("bert", "multiple_choice"),
    ("llama", "classification"),
    ("gpt2", "classification"),
]


@pytest.mark.parametrize("lora", [None, LoraConfig(rank=2)], ids=["whole", "lora"])
@pytest.mark.parametrize(("family", "kind"), HEADS)
def test_a_heads_logits_are_divided(
    model_dir: Callable[[str], Path], kinds: Task, which: Task, family: str, kind: Kind, lora: LoraConfig | None
) -> None:
    task = kinds if kind == "classification" else which
    with seeded(0):
        student = Head.load(model_dir(family), task, StudentConfig(model=str(model_dir(family)), lora=lora))
    rows = student.encode(task.rows("test")[:6])
    before = row_logits(student, rows)
    assert fold_temperature(student, 2.5, rows)
    for x, y in zip(before, row_logits(student, rows), strict=True):
        np.testing.assert_allclose(y, x / 2.5, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("family", ["llama", "llama-tied"])
@pytest.mark.parametrize("name", IN_WORDS)
def test_a_decoders_words_are_left_alone(
    model_dir: Callable[[str], Path], choices: Task, name: KindName, family: str
) -> None:
    student = load(name, model_dir(family), choices, max_length=512)
    before = copy_of(student.network.state_dict())
    assert not fold_temperature(student, 2.5, student.encode(choices.rows("train")))
    for key, tensor in student.network.state_dict().items():
        assert (tensor == before[key]).all(), key


def test_a_plain_pipeline_is_calibrated(kinds: Task, config: StudentConfig, tmp_path: Path) -> None:
    task = Task(name="k", kind="classification", labels=kinds.labels, splits={
        "train": kinds.splits["train"], "validation": kinds.splits["test"][::2], "test": kinds.splits["test"][1::2]
    })  # fmt: skip
    short = config.model_copy(update={"label_epochs": 3})
    student = distill(config.model, task, None, method="labels", config=short, output_dir=tmp_path / "s")
    calibration = student.info.calibration
    assert calibration is not None and calibration.folded and abs(calibration.temperature - 1) > 0.05
    rows = task.rows("test")
    classify = pipeline("text-classification", str(tmp_path / "s"), top_k=None, device="cpu")
    for e, probs, raw in zip(rows, student.predict_proba(rows), student.logits(rows), strict=True):
        said = {one["label"]: one["score"] for one in classify(e.question)[0]}
        np.testing.assert_allclose([said[label] for label in kinds.labels], probs, atol=1e-5)
        np.testing.assert_allclose(softmax(raw / calibration.temperature), probs, atol=1e-6)
    card = (tmp_path / "s/README.md").read_text()
    assert f"a temperature of {calibration.temperature:.3f} is part of its weights; on 24 validation rows" in card


def test_the_card_says_what_to_divide_by(kinds: Task, tiny_gpt2: Path, tmp_path: Path) -> None:
    task = Task(name="k", kind="classification", labels=kinds.labels, splits={"train": kinds.splits["train"]})
    config = StudentConfig(model=str(tiny_gpt2), kind="label_token", label_epochs=2, batch_size=8)
    student = distill(tiny_gpt2, task, None, method="labels", config=config, output_dir=tmp_path / "s")
    calibration = student.info.calibration
    assert calibration is not None and not calibration.folded and calibration.rows == "held out"
    raw, probs = student.logits(task.rows("train"))[0], student.predict_proba(task.rows("train"))[0]
    np.testing.assert_allclose(softmax(raw / calibration.temperature), probs)
    card = (tmp_path / "s/README.md").read_text()
    assert f"Divide its logits by {calibration.temperature:.3f}" in card and "held-out rows" in card
