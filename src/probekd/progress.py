"""How long work tells how far it is: rooms call a ``Progress``, the command line draws it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Protocol


class Progress(Protocol):
    """Receives the progress of one piece of work at a time."""

    def start(self, what: str, total: int, unit: str) -> None:
        """Begin work of ``total`` units (tokens, steps, fits)."""

    def advance(self, amount: int) -> None:
        """``amount`` more units are done."""

    def finish(self) -> None:
        """The work ended."""


class Silent:
    """The default in Python: says nothing."""

    def start(self, what: str, total: int, unit: str) -> None:
        """Do nothing."""

    def advance(self, amount: int) -> None:
        """Do nothing."""

    def finish(self) -> None:
        """Do nothing."""


@contextmanager
def working(progress: Progress, what: str, total: int, unit: str) -> Iterator[Progress]:
    """Start and, whatever happens, finish one piece of work."""
    progress.start(what, total, unit)
    try:
        yield progress
    finally:
        progress.finish()
