"""results.parquet: one row a cell, with all that is known of it, so that cells come back from it too."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from probekd.errors import StoreError
from probekd.evaluation.gate import VERDICT_OF, leader
from probekd.files import replacing
from probekd.study.records import Outcomes

SETTINGS = ("task", "teacher", "student", "method", "pool", "budget", "seed")
SCORES = ("accuracy", "nll", "brier", "ece", "macro_f1", "n")
FIGURES = ("target_accuracy", "pool_rows", "teacher_tokens", "steps", "seconds")
CHOSEN = ("alpha", "temperature", "l2", "learning_rate", "epochs")
"""What the search chose for a student; a kind of student has some of these."""


@dataclass(frozen=True, kw_only=True)
class Result:
    """One cell as results show it."""

    task: str
    teacher: str
    student: str
    method: str
    pool: str
    budget: int
    seed: int
    record: Mapping[str, Any]

    @classmethod
    def of(cls, record: Mapping[str, Any]) -> Result:
        """From a cell's record."""
        return cls(**record["settings"], record=record)

    @property
    def scores(self) -> Mapping[str, float]:
        """Accuracy, log-loss and the rest, on the test rows."""
        return self.record["scores"]  # type: ignore[no-any-return]

    @property
    def outcomes(self) -> Outcomes:
        """What became of each test row."""
        return Outcomes.from_dict(self.record["outcomes"])

    @property
    def chosen(self) -> Mapping[str, float]:
        """What the search chose, by ``CHOSEN``; empty for the teacher's readers."""
        return self.record.get("chosen", {})  # type: ignore[no-any-return]

    @property
    def verdict(self) -> str | None:
        """What the gate said before the student was trained."""
        gate = self.record.get("gate")
        return gate["verdict"] if gate else None

    @property
    def leader(self) -> str | None:
        """The verdict that the lowest log-loss out of fold would have been, sure or not."""
        gate = self.record.get("gate")
        return VERDICT_OF[leader(gate["difference"], gate["versus"])] if gate else None


def write_results(path: Path, planned: Iterable[Result], others: Iterable[Result] = ()) -> None:
    """Write the table; rows in the order of their settings, the planned ones first.

    Args:
        path: Where it goes; a table that is there is replaced.
        planned: Cells of the study as its config is.
        others: Cells that were made for another config, and are kept for it.
    """
    rows = [(r, True) for r in _ordered(planned)] + [(r, False) for r in _ordered(others)]
    ordered = [r for r, _ in rows]
    columns: dict[str, list[Any]] = {name: [getattr(r, name) for r in ordered] for name in SETTINGS}
    columns["planned"] = [planned for _, planned in rows]
    columns |= {name: [r.scores[name] for r in ordered] for name in SCORES}
    columns |= {name: [r.record.get(name) for r in ordered] for name in FIGURES}
    columns |= {name: [r.chosen.get(name) for r in ordered] for name in CHOSEN}
    columns["verdict"] = [r.verdict for r in ordered]
    columns["record"] = [json.dumps(r.record, ensure_ascii=False) for r in ordered]
    with replacing(path) as unfinished:
        pq.write_table(pa.table(columns), unfinished, compression="zstd", compression_level=15)


def _ordered(results: Iterable[Result]) -> list[Result]:
    return sorted(results, key=lambda r: (*(getattr(r, name) for name in SETTINGS), r.record["key"]))


def read_results(path: Path) -> list[Result]:
    """What ``write_results`` wrote; raises StoreError for a file of another kind."""
    try:
        table = pq.read_table(path, columns=["record"])
    except (pa.ArrowInvalid, KeyError, OSError) as error:
        raise StoreError(f"{path}: not a study's results ({error}); remove it and run the study again") from None
    return [Result.of(json.loads(text)) for text in table["record"].to_pylist()]
