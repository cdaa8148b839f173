"""How a study tells how far it is: the command line draws it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Protocol

from probekd.progress import Progress, Silent
from probekd.study.plan import Cell, Draw


class Watcher(Protocol):
    """Receives what happens in a study."""

    @property
    def progress(self) -> Progress:
        """For long work inside a cell."""
        ...

    def refused(self, draw: Draw, why: str) -> None:
        """A draw that nothing can be fitted to; its cells are not made."""

    def planned(self, cells: Mapping[str, tuple[int, int]]) -> None:
        """How many cells of each task are made, and how many there are; other processes make cells too."""

    def began(self, what: str) -> None:
        """What is worked on from now."""

    def made(self, cell: Cell, accuracy: float) -> None:
        """A cell is finished."""


class Quiet:
    """The default in Python: says nothing."""

    progress: Progress = Silent()

    def refused(self, draw: Draw, why: str) -> None:
        """Do nothing."""

    def planned(self, cells: Mapping[str, tuple[int, int]]) -> None:
        """Do nothing."""

    def began(self, what: str) -> None:
        """Do nothing."""

    def made(self, cell: Cell, accuracy: float) -> None:
        """Do nothing."""
