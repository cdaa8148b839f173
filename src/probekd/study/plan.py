"""The cells of a study: which there are, in which order they are made, and what each is called."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from typing import Any

from probekd.methods import RECIPES
from probekd.study.config import Pool, StudyConfig, teacher_label

READERS = ("teacher_output", "probe")
"""Methods of the cells without a student: what the teacher's best output readout and its probe score themselves."""


@dataclass(frozen=True, kw_only=True)
class Draw:
    """One drawing of labels from a task, for one teacher; what is fitted on it serves every method."""

    task: str
    teacher: str
    budget: int
    seed: int

    @property
    def name(self) -> str:
        """File-safe, for people."""
        return _safe(f"{self.task}-{self.teacher}-{self.budget}-{self.seed}")

    @property
    def words(self) -> str:
        """For people who read a sentence."""
        return f"{self.task}, {self.budget} labels, seed {self.seed}"


@dataclass(frozen=True, kw_only=True)
class Cell:
    """One student trained by one method; or, with ``student`` empty, one of ``READERS``."""

    draw: Draw
    student: str
    method: str
    pool: Pool

    @property
    def name(self) -> str:
        """File-safe, for people."""
        pool = "" if self.pool == 0 else f"-pool-{self.pool}"
        return _safe(f"{self.draw.name}-{self.student or 'teacher'}-{self.method}{pool}")

    def settings(self) -> dict[str, Any]:
        """For the record."""
        return {**asdict(self.draw), "student": self.student, "method": self.method, "pool": str(self.pool)}


def _safe(text: str) -> str:
    return re.sub(r"[^A-Za-z0-9_.]+", "-", text)


def draws(study: StudyConfig, labels: Mapping[str, int]) -> Iterator[Draw]:
    """Every draw; seeds outermost, so that early results cover every task.

    Args:
        study: The grid.
        labels: Labelled rows of each task: budgets beyond them are left out.
    """
    for seed in study.seeds:
        for task in study.tasks:
            for budget in sorted(study.budgets):
                if budget <= labels[task.label]:
                    for teacher in study.teachers:
                        yield Draw(task=task.label, teacher=teacher_label(teacher), budget=budget, seed=seed)


def cells(study: StudyConfig, draw: Draw, *, pool_rows: int) -> list[Cell]:
    """The cells of a draw: the readers, then each student by every method, without the pool and with it.

    Methods that cannot learn from a pool are trained without one, whatever ``study.pool`` says; those that need it only
    with one. A pool has as many rows as there are, at most.
    """
    pools = study.pool if pool_rows else (0,)
    found = [Cell(draw=draw, student="", method=name, pool=0) for name in READERS]
    for student in study.students:
        for method in study.methods:
            learns = RECIPES[method].pool
            admitted = [0] if learns == "never" else [p for p in pools if learns == "optional" or p != 0]
            found += [Cell(draw=draw, student=student.label, method=method, pool=p) for p in admitted]
    return found
