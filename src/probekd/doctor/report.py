"""What was found, as data and as tables."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any, Literal

Verdict = Literal["use", "do not use", "not available"]
Finding = Literal["ok", "warning", "fault"]

_STYLE = {"use": "green", "do not use": "bold red", "not available": "dim"}
_STYLE |= {"ok": "green", "warning": "yellow", "fault": "bold red"}


@dataclass(frozen=True, kw_only=True)
class Check:
    """Something about the prompts or the reference that was looked at.

    Attributes:
        name: What.
        finding: A ``fault`` must be mended, a ``warning`` be known.
        text: What was seen.
    """

    name: str
    finding: Finding
    text: str


@dataclass(frozen=True, kw_only=True)
class ModeResult:
    """One way of reading the rows, compared with the reference.

    Attributes:
        mode: Its name.
        verdict: Whether it may be used.
        reason: Why not; empty where it may.
        rows: Rows that were compared.
        tolerance: Largest relative error that is rounding.
        by_depth: Worst relative error of the states at each depth; NaN where one of them is not finite.
        readouts: Worst relative error of the label logits and likelihoods of options, where they are read.
        exact: Whether the mode computes in float32. Otherwise its readouts are not judged by their errors, which are
            relative to few numbers, but by the decisions.
        agree: Decisions that are the reference's.
        decisions: Decisions that were compared.
    """

    mode: str
    verdict: Verdict
    reason: str = ""
    rows: int = 0
    tolerance: float = 0.0
    by_depth: tuple[float, ...] = ()
    readouts: Mapping[str, float] = field(default_factory=dict)
    exact: bool = True
    agree: int = 0
    decisions: int = 0

    @property
    def judged(self) -> dict[str, float]:
        """The errors that the verdict goes by, by where they are."""
        return {f"depth {k}": e for k, e in enumerate(self.by_depth)} | (dict(self.readouts) if self.exact else {})

    @property
    def worst(self) -> tuple[float, str]:
        """The worst of them, and where it is."""
        where = self.judged
        at = max(where, key=lambda name: math.inf if math.isnan(where[name]) else where[name])
        return where[at], at


@dataclass(frozen=True, kw_only=True)
class Report:
    """What the doctor found.

    Attributes:
        teacher: Name of the model.
        task: Name of the task.
        checks: Of the prompts and the reference.
        modes: Empty when the prompts are such that nothing can be read.
    """

    teacher: str
    task: str
    checks: tuple[Check, ...]
    modes: tuple[ModeResult, ...]

    @property
    def healthy(self) -> bool:
        """Whether there is no fault, and no mode that must not be used."""
        return all(c.finding != "fault" for c in self.checks) and all(m.verdict != "do not use" for m in self.modes)

    def as_dict(self) -> dict[str, Any]:
        """For JSON, which has no NaN: an error that is no number is null."""
        found = asdict(self) | {"healthy": self.healthy}
        for mode, result in zip(found["modes"], self.modes, strict=True):
            mode["by_depth"] = [_number(e) for e in result.by_depth]
            mode["readouts"] = {name: _number(e) for name, e in result.readouts.items()}
        return found


def _number(error: float) -> float | None:
    return error if math.isfinite(error) else None


def print_report(report: Report) -> None:
    """Tables for people; why a mode is not to be used stands below, on one line each."""
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    console = Console()
    checks = Table("check", "finding", "what was seen", box=None, header_style="bold")
    for check in report.checks:
        checks.add_row(check.name, Text(check.finding, style=_STYLE[check.finding]), Text(check.text))
    console.print(checks)
    if not report.modes:
        return
    modes = Table("mode", "rows", "worst relative error", "at", "decisions that agree", "verdict", box=None)
    modes.header_style = "bold"
    for mode in report.modes:
        read = bool(mode.by_depth)
        error, at = mode.worst if read else (0.0, "")
        cells = (f"{mode.rows}", f"{error:.1e}", at, f"{mode.agree} of {mode.decisions}") if read else ("",) * 4
        modes.add_row(mode.mode, *cells, Text(mode.verdict, style=_STYLE[mode.verdict]))
    console.print()
    console.print(modes)
    for mode in report.modes:
        if mode.reason:
            line = Text(f"{mode.mode}: {mode.verdict}: {mode.reason}")
            console.print(line, soft_wrap=True)
