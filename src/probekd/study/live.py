"""The terminal's view of a study: a table of its tasks, a bar with the time that is left, and what is worked on."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager

from rich.console import Console, Group
from rich.live import Live
from rich.table import Table
from rich.text import Text

from probekd.progress import Progress
from probekd.study.plan import Cell, Draw

BAR = 24


class Board:
    """A ``Watcher`` that draws on a console; where that is no terminal, it prints a line a draw."""

    def __init__(self, console: Console, live: Live | None) -> None:
        self.console = console
        self.live = live
        self.progress: Progress = _Step(self)
        self.tasks: Mapping[str, tuple[int, int]] = {}
        self.doing = ""
        self.step = ""
        self.scores: dict[str, list[tuple[str, float]]] = {}
        self.mine = 0
        self.working_since = time.monotonic()

    def refused(self, draw: Draw, why: str) -> None:
        """See ``Watcher``."""
        self.console.print(f"refused: {draw.words}: {why}", highlight=False, markup=False, soft_wrap=True)

    def planned(self, cells: Mapping[str, tuple[int, int]]) -> None:
        """See ``Watcher``."""
        self.tasks = cells
        if self.live is None:
            done, total = self._counts()
            self.console.print(f"{done} of {total} cells, {self._left()}", highlight=False)
        self._draw()

    def began(self, what: str) -> None:
        """See ``Watcher``."""
        self.doing, self.step = what, ""
        self._draw()

    def made(self, cell: Cell, accuracy: float) -> None:
        """See ``Watcher``."""
        self.mine += 1
        done, total = self.tasks.get(cell.draw.task, (0, 0))
        self.tasks = {**self.tasks, cell.draw.task: (done + 1, total)}
        self.scores.setdefault(cell.draw.task, []).append((cell.method, accuracy))
        self._draw()

    def _counts(self) -> tuple[int, int]:
        return sum(done for done, _ in self.tasks.values()), sum(total for _, total in self.tasks.values())

    def _left(self) -> str:
        """Time left at this process's own pace; others that help make it less."""
        done, total = self._counts()
        if done >= total:
            return "nothing left"
        if not self.mine:
            return "time left unknown"
        seconds = (total - done) * (time.monotonic() - self.working_since) / self.mine
        hours, minutes = divmod(round(seconds / 60), 60)
        return f"about {hours} h {minutes:02} min left" if hours else f"about {max(1, minutes)} min left"

    def _draw(self) -> None:
        if self.live is not None:
            self.live.update(self._view())

    def _view(self) -> Group:
        table = Table(box=None, header_style="bold", pad_edge=False)
        for name in ("task", "cells", "latest"):
            table.add_column(name, justify="right" if name == "cells" else "left")
        for task, (done, total) in self.tasks.items():
            latest = "  ".join(f"{method} {accuracy:.3f}" for method, accuracy in self.scores.get(task, [])[-3:])
            table.add_row(task, f"{done}/{total}", latest)
        done, total = self._counts()
        filled = round(BAR * done / total) if total else 0
        bar = Text("━" * filled, style="green") + Text("━" * (BAR - filled), style="dim")
        return Group(
            table, Text(""), bar + Text(f"  {done} of {total} cells, {self._left()}"), Text(f"{self.doing}{self.step}")
        )


class _Step:
    """Progress inside a cell, as a share behind what is worked on."""

    def __init__(self, board: Board) -> None:
        self.board = board
        self.what, self.total, self.done = "", 0, 0

    def start(self, what: str, total: int, unit: str) -> None:
        self.what, self.total, self.done = what, total, 0
        self._show()

    def advance(self, amount: int) -> None:
        self.done += amount
        self._show()

    def finish(self) -> None:
        self.board.step = ""
        self.board._draw()

    def _show(self) -> None:
        share = f" {100 * self.done / self.total:.0f}%" if self.total else ""
        self.board.step = f" ({self.what}{share})"
        self.board._draw()


@contextmanager
def board(console: Console) -> Iterator[Board]:
    """A board that is drawn while the block runs, four times a second."""
    if not console.is_terminal:
        yield Board(console, None)
        return
    with Live(console=console, refresh_per_second=4) as live:
        yield Board(console, live)
