"""Rows that recur: training rows among the rows that are reported on, and training rows that contradict each other."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import replace
from typing import Literal

from probekd.errors import DataError
from probekd.tasks.base import Example, Task, duplicate_keys, normalise

Policy = Literal["drop", "error", "keep"]
LEARNT = ("train", "unlabelled")
REPORTED = ("validation", "test")


def apply_overlap_policy(task: Task, policy: Policy = "drop") -> Task:
    """Deal with train and unlabelled rows whose question recurs in validation or test; the rest is only noted.

    ``drop`` leaves those rows out, ``keep`` keeps them, and both say so in the notes. Also noted: validation and dev
    rows that recur in test, and training rows that ask the same and are answered differently.

    Raises:
        DataError: under ``error``, when rows recur; under ``drop``, when no labelled training row is left.
    """
    keys = _keys(task)
    reported = {keys[e.id] for e in task.rows(*REPORTED)}
    recurring = {split: [e for e in task.rows(split) if keys[e.id] in reported] for split in LEARNT}
    found = {f"{_count(rows, split)} in validation or test": _some(rows) for split, rows in recurring.items() if rows}
    if found and policy == "error":
        places = "; ".join(f"{text} ({ids})" for text, ids in found.items())
        raise DataError(f"task {task.name}: {places}; mend the data, or set task.on_overlap to drop or keep")
    done = "left out" if policy == "drop" else "kept"
    notes = [f"{text}: {done} ({ids})" for text, ids in found.items()]
    if policy == "drop":
        task = _without(task, {e.id for rows in recurring.values() for e in rows})
    tested = {keys[e.id] for e in task.rows("test")}
    for split in ("validation", "dev"):
        if again := [e for e in task.rows(split) if keys[e.id] in tested]:
            notes.append(f"{_count(again, split)} in test: kept ({_some(again)})")
    if contradicting := _contradicting(task, keys):
        notes.append(
            f"{len(contradicting)} train rows ask what another asks but differ in the answer: kept ({_some(contradicting)})"
        )
    return replace(task, notes=(*task.notes, *notes))


def _keys(task: Task) -> dict[str, str]:
    rows = task.rows(*task.splits)
    return {e.id: key for e, key in zip(rows, duplicate_keys(rows), strict=True)}


def _without(task: Task, ids: set[str]) -> Task:
    """The task without these rows; a split that is emptied goes, except train, which may not be emptied."""
    kept = {split: tuple(e for e in rows if e.id not in ids) for split, rows in task.splits.items()}
    if ids and not any(e.answer is not None for e in kept["train"]):
        raise DataError(f"task {task.name}: every labelled training row recurs in validation or test; use other data")
    return replace(task, splits={split: rows for split, rows in kept.items() if rows})


def _contradicting(task: Task, keys: dict[str, str]) -> list[Example]:
    """Labelled training rows with the same question and options as another one, but another answer."""
    groups: dict[tuple[str, ...], list[Example]] = defaultdict(list)
    for e in task.rows("train"):
        if e.answer is not None:
            groups[(keys[e.id], *sorted(map(normalise, e.options)))].append(e)
    return [e for group in groups.values() if len({normalise(_answer(e)) for e in group}) > 1 for e in group]


def _answer(example: Example) -> str:
    assert example.answer is not None
    return example.options[example.answer]


def _count(examples: Sequence[Example], split: str) -> str:
    return f"1 {split} row recurs" if len(examples) == 1 else f"{len(examples)} {split} rows recur"


def _some(examples: Sequence[Example], most: int = 5) -> str:
    return ", ".join(e.id for e in examples[:most]) + (", ..." if len(examples) > most else "")
