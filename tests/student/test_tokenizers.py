"""Targets live in class space: the student's tokenizer is its own affair."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from transformers import AutoTokenizer

from probekd.config import KindName, StudentConfig
from probekd.extraction import extract
from probekd.probes.fit import fit_probes, soft_labels
from probekd.student import distill
from probekd.targets import SoftTargets
from probekd.tasks.base import Task
from probekd.teacher.load import Teacher


def few(task: Task) -> Task:
    """Eight labelled rows of each kind, and four in the pool: few enough to learn by heart what a random teacher says."""
    return replace(task, splits={"train": task.splits["train"][::2], "unlabelled": task.splits["unlabelled"][::4]})


@pytest.fixture(scope="module")
def targets(teacher_of: Callable[[str], Teacher], kinds: Task) -> SoftTargets:
    """What a probe reads in a teacher with a byte-level tokenizer."""
    states = extract(teacher_of("llama"), few(kinds), splits=("train", "unlabelled"), layouts=("listed",))
    found = soft_labels(fit_probes(states, few(kinds)), states)
    # A random teacher is unsure; made surer, what it says of each row can be told from what it says of another.
    return replace(found, logits=tuple(3 * (row - row.mean()) / row.std() for row in found.logits))


@pytest.mark.parametrize("kind", ["head", "label_token", "option_likelihood"])
def test_a_student_with_another_tokenizer_learns_what_the_teacher_knows(
    kind: KindName,
    targets: SoftTargets,
    tiny_bert: Path,
    tiny_gpt2: Path,
    model_dir: Callable[[str], Path],
    kinds: Task,
) -> None:
    student_dir = tiny_bert if kind == "head" else tiny_gpt2
    text = kinds.rows("train")[0].question
    tokens = [AutoTokenizer.from_pretrained(d)(text)["input_ids"] for d in (model_dir("llama"), student_dir)]
    assert len(tokens[0]) > 2 * len(tokens[1])  # one reads words, the other bytes
    config = StudentConfig(
        model=str(student_dir),
        kind=kind,
        epochs=40,
        learning_rate=6e-3,
        batch_size=8,
        alpha=0.0,
        max_length=64,
        early_stopping=None,
    )
    student = distill(student_dir, few(kinds), targets, config=config)
    rows = few(kinds).rows("train", "unlabelled")
    wanted = [int(targets.by_id()[e.id].argmax()) for e in rows]
    agree = [p.argmax() == w for p, w in zip(student.predict_proba(rows), wanted, strict=True)]
    most_frequent = max(wanted.count(option) for option in range(3)) / len(wanted)
    assert np.mean(agree) > most_frequent + 0.2
