"""Which reader reads best: the tasks of the study, their rows, and the teacher's states of them.

Usage: python studies/readers.py read [TASK ...]
"""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path

from probekd.extraction import extract
from probekd.tasks import load_task
from probekd.tasks.base import Task, content_hash

MODELS = Path(__file__).resolve().parent.parent / "models"
TEACHER = MODELS / "smollm2-135m-instruct"
MOST_LABELS = {"aqua_rat": 300}
HELD_OUT = {"mmlu": 600}
# Four subjects that together have 300 rows to learn from: only two of the 57 have a hundred by themselves.
MMLU_SUBJECTS = ("high_school_psychology", "miscellaneous", "moral_scenarios", "professional_psychology")
TASKS = ("wordnet_kinds", "banking77", "arc_easy", "wordnet_which", "arc_challenge", "mmlu", "aqua_rat")


def study_task(name: str) -> Task:
    """A task with at most 1000 labelled rows and 1000 held-out test rows.

    ARC-Easy keeps the file's order, because its bar is stated for the first 600 four-option rows.
    """
    task = load_task(name, subjects=MMLU_SUBJECTS if name == "mmlu" else None)
    train = len([e for e in task.rows("train") if e.answer is not None])
    task = task.budget(labels=min(train, MOST_LABELS.get(name, 1000)), pool=0)
    test = task.rows("test")
    if name != "arc_easy":
        test = sorted(test, key=lambda e: content_hash("held-out", e.id))
    splits = {**task.splits, "test": tuple(test[: HELD_OUT.get(name, 1000)])}
    return replace(task, splits={k: v for k, v in splits.items() if k in ("train", "test", "dev")})


def main(arguments: list[str]) -> None:
    """Read the states of the named tasks (all when none is named)."""
    for name in arguments or TASKS:
        task = study_task(name)
        print(name, {k: len(v) for k, v in task.splits.items()}, flush=True)
        extract(TEACHER, task)


if __name__ == "__main__":
    main(sys.argv[1:])
