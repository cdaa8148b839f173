"""A small extraction for processes that are killed: many small shards, each of which is noted in a file once it is written."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from probekd.config import TeacherConfig
from probekd.extraction import extract, job, shards
from probekd.tasks.base import Example, Task


def fill(model: Path, cache: Path, memory: Any, log: Path) -> None:
    """Read rows of very different lengths. For a process of its own: what it changes in the package stays so."""
    rows = tuple(
        Example(
            id=f"r{i}", question="the red cow eats grass " * (1 + i % 7), options=("here", "a hammer", f"{i}"), answer=0
        )
        for i in range(36)
    )
    task = Task(name="kills", kind="multiple_choice", splits={"train": rows})
    job.ROWS_AT_ONCE = 3
    write = shards.write

    def noted(path: Path, *rest: Any) -> None:
        write(path, *rest)
        with log.open("a") as file:
            file.write(f"{path.name}\n")

    shards.write = noted
    extract(TeacherConfig(model=str(model), memory=memory, batch_tokens=120), task, layouts=["branched"], cache=cache)
