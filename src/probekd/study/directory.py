"""A study's directory: one file a cell, what is kept for making more of them, and who works on what.

``work/`` holds cells, readings, embeddings and locks; beside it lie the results, from which the cells come back where
``work/`` is gone.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from probekd.files import read_json, write_json
from probekd.study.plan import Cell
from probekd.study.records import FORMAT


@dataclass(frozen=True)
class StudyDirectory:
    """Files of a study."""

    path: Path

    def place(self, kind: str, name: str) -> Path:
        """Where something of a kind is kept, such as ``readings`` or ``embeddings``."""
        return self.path / "work" / kind / name

    def cell(self, cell: Cell, key: str) -> Path:
        """File of a cell; its name says what it is, and the key everything that it depends on."""
        return self.place("cells", f"{cell.name}-{key[:12]}.json")

    def has(self, cell: Cell, key: str) -> bool:
        """Whether a cell is made."""
        return self.cell(cell, key).is_file()

    def read(self, cell: Cell, key: str) -> dict[str, Any]:
        """A cell's record."""
        return read_json(self.cell(cell, key))  # type: ignore[no-any-return]

    def write(self, cell: Cell, key: str, record: dict[str, Any]) -> None:
        """Keep a cell's record."""
        write_json(self.cell(cell, key), {**record, "key": key, "format": FORMAT})

    def made(self) -> Iterator[dict[str, Any]]:
        """The record of every cell that has a file, whichever config it was made for."""
        for path in sorted(self.place("cells", "").glob("*.json")):
            yield read_json(path)

    @contextmanager
    def held(self, name: str, *, wait: bool = False) -> Iterator[bool]:
        """Hold something against other processes; False when another one holds it.

        The system lets go of a lock when its process ends, however it ends.
        """
        from filelock import FileLock, Timeout

        path = self.place("locks", name)
        path.parent.mkdir(parents=True, exist_ok=True)
        lock = FileLock(path, timeout=-1 if wait else 0)
        try:
            lock.acquire()
        except Timeout:
            yield False
            return
        try:
            yield True
        finally:
            lock.release()
