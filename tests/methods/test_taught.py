"""What students have learnt, and not only what they were to learn: smoothed labels leave another student than labels."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from tiny import choice_row

from probekd.config import ProbeConfig, StudentConfig
from probekd.methods import RECIPES, Evidence
from probekd.methods.single import SMOOTHING
from probekd.progress import Silent
from probekd.student import distill, frozen_embeddings
from probekd.study.config import SearchConfig
from probekd.study.learners import Learner, Lesson, StaticLearner, TrainedLearner
from probekd.tasks.base import Task

WORDS = ("grass", "soup", "rice", "cloud", "light", "hammer")


@pytest.fixture
def task() -> Task:
    """Multiple choice with 2 to 4 options, the right one always ``cow``."""
    rows = []
    for i in range(24):
        others = WORDS[i % 3 : i % 3 + 1 + i % 3]
        options = [*others[: i % 2], "cow", *others[i % 2 :]]
        rows.append(choice_row(f"r{i}", f"Which is an animal? {i}", *options, answer=options.index("cow")))
    splits = {"train": tuple(rows[:16]), "validation": tuple(rows[16:])}
    return Task(name="cows", kind="multiple_choice", splits=splits)


def evidence_of(task: Task) -> Evidence:
    labelled = tuple(task.rows("train"))
    return Evidence(labelled=labelled, pool=(), folds=np.arange(len(labelled)) % 4, views={})


@pytest.mark.parametrize("kind", ["head", "static"])
def test_a_run_teaches_smoothed_labels(model_dir: Callable[[str], Path], task: Task, kind: str) -> None:
    bert = str(model_dir("bert"))
    config = StudentConfig(model=bert, kind=kind, label_epochs=60, learning_rate=3e-3, early_stopping=None)  # type: ignore[arg-type]
    alone = replace(task, splits={"train": task.splits["train"]})
    told = RECIPES["label-smoothing"].make(evidence_of(task))
    hard = distill(bert, alone, None, method="labels", config=config)
    smooth = distill(bert, alone, told, method="label-smoothing", config=config)
    rows = alone.rows("train")
    loss = np.empty((2, 2))
    for i, student in enumerate((hard, smooth)):
        said = student.predict_proba(rows)
        for j, share in enumerate((0.0, SMOOTHING * (1 - config.alpha))):
            spread = [share / len(e.options) + (1 - share) * np.eye(len(e.options))[e.answer] for e in rows]
            loss[i, j] = -np.mean([(p * np.log(q)).sum() for p, q in zip(spread, said, strict=True)])
    # Each is the better one at what it was taught.
    assert loss[0, 0] < loss[1, 0] - 1e-3
    assert loss[1, 1] < loss[0, 1] - 1e-3 or kind == "static"  # whose penalty spreads more than the smoothing


@pytest.mark.parametrize("kind", ["head", "static"])
def test_a_study_teaches_smoothed_labels(model_dir: Callable[[str], Path], task: Task, kind: str) -> None:
    bert = str(model_dir("bert"))
    config = StudentConfig(model=bert, label_epochs=2, learning_rate=3e-3)
    rows = task.rows("train", "validation")
    vectors = frozen_embeddings(bert, rows, task.kind, config=config)
    search = SearchConfig(alpha=(0.5,), temperature=(1.0,), l2=(0.1,))
    frozen = StaticLearner(
        vectors={e.id: v for e, v in zip(rows, vectors, strict=True)}, config=config, search=search, probe=ProbeConfig()
    )
    learners: dict[str, Learner] = {
        "static": frozen,
        "head": TrainedLearner(task=task, config=config, search=search, frozen=frozen, progress=Silent()),
    }
    said = {}
    for method in ("labels", "label-smoothing"):
        lesson = Lesson(
            name=method,
            recipe=RECIPES[method],  # type: ignore[index]
            evidence=evidence_of(task),
            validation=tuple(task.rows("validation")),
            hidden=lambda rows: {},
            seed=0,
        )
        said[method] = learners[kind].learn(lesson, task.rows("validation")).probs
    apart = [np.abs(a - b).max() for a, b in zip(said["labels"], said["label-smoothing"], strict=True)]
    assert max(apart) > 1e-4
