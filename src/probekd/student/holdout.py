"""Labelled rows that a student is watched on while it trains, and calibrated on afterwards."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from probekd.config import StudentConfig
from probekd.errors import DataError
from probekd.probes.folds import assign_folds
from probekd.student.calibration import Rows
from probekd.tasks.base import Example, Task


@dataclass(frozen=True, slots=True, kw_only=True)
class Watched:
    """Rows that take no part in the training that they watch.

    Attributes:
        rows: Where they come from; None = there are none.
        examples: The rows, all labelled.
        rest: Labelled training rows without them.
    """

    rows: Rows | None
    examples: tuple[Example, ...] = ()
    rest: tuple[Example, ...]


def choose_watched(task: Task, train: Sequence[Example], config: StudentConfig, seed: int) -> Watched:
    """The labelled rows of ``validation``; where there are none, and training may stop early, a fold of ``train``.

    The fold is stratified, and a question's variants are on one side of it.

    Args:
        task: Gives the validation rows.
        train: Labelled training rows.
        config: ``early_stopping``.
        seed: Of the folds.

    Raises:
        DataError: too few labelled rows to hold any out.
    """
    validation = tuple(e for e in task.rows("validation") if e.answer is not None)
    if validation:
        return Watched(rows="validation", examples=validation, rest=tuple(train))
    if config.early_stopping is None:
        return Watched(rows=None, rest=tuple(train))
    try:
        folds = assign_folds(train, task.kind, folds=config.early_stopping.folds, seed=seed)
    except DataError as error:
        raise DataError(
            f"task {task.name} has no validation split, and no training rows can be held out instead: {error}; or set "
            "student.early_stopping to null"
        ) from None
    return Watched(
        rows="held out",
        examples=tuple(e for e, fold in zip(train, folds, strict=True) if fold == 0),
        rest=tuple(e for e, fold in zip(train, folds, strict=True) if fold != 0),
    )
