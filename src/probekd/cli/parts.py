"""What the commands share: options, JSON for machines, a progress bar."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from rich.console import Console

ConfigArgument = Annotated[
    Path, typer.Argument(help="The run's YAML file, or the directory of a run.", show_default=False)
]
SetOption = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="KEY=VALUE", help="Override one key, such as task.labels=100; may be repeated."),
]
ResumeOption = Annotated[
    bool, typer.Option("--resume", help="Go on in a run directory that was made with another config.")
]
TrustOption = Annotated[
    bool, typer.Option("--trust-remote-code", help="Run Python code that ships with the checkpoint.")
]
JsonOption = Annotated[bool, typer.Option("--json", help="Print JSON to standard output, for machines.")]


def print_json(value: Any) -> None:
    """Print a value as indented JSON."""
    print(json.dumps(value, ensure_ascii=False, indent=1))


@contextmanager
def progress_bar(console: Console) -> Iterator[Any]:
    """A rich progress bar with rate and time left, as the rooms' ``Progress``."""
    from rich.progress import BarColumn, ProgressColumn, TextColumn, TimeElapsedColumn, TimeRemainingColumn
    from rich.progress import Progress as Bars
    from rich.text import Text

    class Rate(ProgressColumn):
        def render(self, task: Any) -> Text:
            speed = task.finished_speed or task.speed
            return Text(f"{speed:,.0f} {task.fields['unit']}/s" if speed else "", style="dim")

    columns = (
        TextColumn("  {task.description}"),
        BarColumn(bar_width=24),
        TextColumn("{task.percentage:>3.0f}%"),
        Rate(),
        TimeElapsedColumn(),
        TextColumn("left"),
        TimeRemainingColumn(),
    )
    # Where there is no terminal, rich would print an empty line for the bar that it cannot draw.
    with Bars(*columns, console=console, transient=True, disable=not console.is_terminal) as bars:

        class Bar:
            def start(self, what: str, total: int, unit: str) -> None:
                self.task = bars.add_task(what, total=total, unit=unit)

            def advance(self, amount: int) -> None:
                bars.advance(self.task, amount)

            def finish(self) -> None:
                bars.remove_task(self.task)

        yield Bar()
