"""Rows that neither student nor probe learned from, on which the threshold is chosen; no answers are needed."""

from __future__ import annotations

import random
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from probekd.tasks.base import Example, Task

SAMPLE, SEED = 500, 0


@dataclass(frozen=True, kw_only=True)
class HeldOut:
    """Rows, and where they come from, in words."""

    rows: tuple[Example, ...]
    source: str


def held_out_rows(task: Task, named: Sequence[Example] | None, input_rows: Iterable[Example]) -> HeldOut:
    """The rows that are named; else those of the task's validation split; else a sample of the input.

    The sample is as good as any: the rest of the input is a sample of the same rows. Labelled training rows would not
    do, since the student has seen them all.

    Args:
        task: The run's.
        named: Rows like those to be answered, which were not in the pool; None = none are named.
        input_rows: Those to be answered.
    """
    if named is not None:
        return HeldOut(rows=tuple(named), source="the held-out file")
    if validation := task.rows("validation"):
        return HeldOut(rows=tuple(validation), source="the validation split")
    sampled = sample(input_rows, SAMPLE, SEED)
    return HeldOut(rows=tuple(sampled), source="a sample of the input, for want of a validation split")


def sample(rows: Iterable[Example], size: int, seed: int) -> list[Example]:
    """At most ``size`` rows drawn evenly from a stream of any length, in one pass and in the memory of the sample."""
    draw = random.Random(seed)
    kept: list[Example] = []
    for number, row in enumerate(rows):
        if number < size:
            kept.append(row)
        elif (place := draw.randrange(number + 1)) < size:
            kept[place] = row
    return kept
