"""predictions.parquet and the scores made from it."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from probekd.errors import DataError
from probekd.files import replacing
from probekd.metrics import Scores, score
from probekd.tasks.base import Example, Task

if TYPE_CHECKING:
    from probekd.student.model import Student


@dataclass(frozen=True, kw_only=True)
class Predictions:
    """One predictor's distributions over the rows of one split."""

    who: str
    split: str
    examples: Sequence[Example]
    probs: Sequence[np.ndarray]

    def labelled(self) -> tuple[list[np.ndarray], list[int]]:
        """Distributions and gold answers of the rows that have one."""
        pairs = [(p, e.answer) for p, e in zip(self.probs, self.examples, strict=True) if e.answer is not None]
        return [p for p, _ in pairs], [a for _, a in pairs]

    def scores(self) -> Scores:
        """Scores over the labelled rows; raises DataError when there is none."""
        probs, answers = self.labelled()
        if not answers:
            raise DataError(f"split {self.split!r} has no labelled row, so nothing can be scored")
        return score(probs, answers)


def write_predictions(path: Path, predictions: Iterable[Predictions]) -> None:
    """Write the contract's table: id, split, who, probs, answer (-1 = unlabelled)."""
    rows = [
        (e.id, p.split, p.who, probs.tolist(), -1 if e.answer is None else e.answer)
        for p in predictions
        for e, probs in zip(p.examples, p.probs, strict=True)
    ]
    names = ("id", "split", "who", "probs", "answer")
    types = (pa.string(), pa.string(), pa.string(), pa.list_(pa.float64()), pa.int32())
    columns = zip(*rows, strict=True) if rows else ((),) * len(names)
    table = pa.table(
        {name: pa.array(list(values), kind) for name, kind, values in zip(names, types, columns, strict=True)}
    )
    with replacing(path) as temporary:
        pq.write_table(table, temporary)


def scored_splits(task: Task, wanted: Sequence[str]) -> list[str]:
    """The wanted splits that the task has with labelled rows; raises DataError when there is none."""
    splits = [s for s in wanted if any(e.answer is not None for e in task.rows(s))]
    if not splits:
        raise DataError(
            f"task {task.name}: none of the splits {list(wanted)} has labelled rows; name one in evaluate.splits"
        )
    return splits


def evaluate(student: Student, task: Task, *, splits: Sequence[str] = ("test",)) -> Mapping[str, Scores]:
    """Scores of a student by split.

    Raises:
        DataError: none of the splits has labelled rows.
    """
    found = {}
    for split in scored_splits(task, splits):
        rows = task.rows(split)
        found[split] = Predictions(
            who="student", split=split, examples=rows, probs=student.predict_proba(rows)
        ).scores()
    return found
