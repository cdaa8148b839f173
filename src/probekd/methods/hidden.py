"""Where the teacher's hidden states are matched, for ``hidden-kd``."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from probekd.config import Layout, Position, ProbeConfig
from probekd.errors import ConfigError
from probekd.extraction import default_positions
from probekd.methods.views import widest
from probekd.probes.families import applies
from probekd.probes.probe import Probe
from probekd.prompts import layouts_of, orders_read
from probekd.states import States
from probekd.tasks.base import Example, Task


@dataclass(frozen=True, kw_only=True)
class HiddenPlace:
    """A place in the teacher."""

    layout: Layout
    position: Position
    depth: int

    @property
    def wanted(self) -> dict[str, Any]:
        """Arguments of ``extract`` that read it, and no more."""
        return {
            "layouts": (self.layout,),
            "positions": (self.position,),
            "depths": (self.depth,),
            "outputs": False,
        }

    def read(self, states: States, ids: Sequence[str]) -> np.ndarray:
        """States of rows by id: (n, D), or (n, k, D) of options."""
        return states.read(self.layout, self.position, self.depth, ids)

    def by_row(self, states: States, rows: Sequence[Example]) -> dict[str, np.ndarray]:
        """State of each row by id: (D,), or (k_i, D) of its own options."""
        found = self.read(states, [e.id for e in rows])
        return {e.id: s[: len(e.options)] if s.ndim == 2 else s for e, s in zip(rows, found, strict=True)}


def hidden_place(probe: Probe, *, options: bool) -> HiddenPlace | None:
    """Where the best reader of one depth reads that reads what the student reads; None = no such reader was tried.

    Args:
        probe: Fitted on the labelled rows.
        options: Whether the student has a state for each option of a row (``StudentKind.reads_options``), or one for the
            row.
    """
    single = [c for c in probe.candidates if c.reader.window == 1 and (c.reader.position != "answer") == options]
    if not single:
        return None
    reader = min(single, key=lambda c: c.nll).reader
    return HiddenPlace(layout=reader.layout, position=reader.position, depth=reader.depth)


def positions_tried(task: Task, config: ProbeConfig) -> list[tuple[Layout, Position]]:
    """The layouts and positions that probes will read of a task, as ``probes.trials.plan`` finds them once there are states."""
    classes = widest(task.rows("train"))
    return [
        (layout, position)
        for layout in layouts_of(task.kind, task.prompt)
        for position in default_positions(task, layout)
        if config.positions is None or position in config.positions
        # Answer states of several orders are read by no probe.
        if position != "answer" or orders_read(task.kind, layout, task.prompt) == 1
        if any(applies(family, options=position != "answer", classes=classes) for family in config.families)
    ]


def check_place(task: Task, config: ProbeConfig, *, options: bool) -> None:
    """Raise ConfigError where no probe will read what the student reads, so that ``hidden_place`` would find none.

    Args:
        task: Kind and prompt.
        config: Positions that probes try.
        options: See ``hidden_place``.
    """
    if any((position != "answer") == options for _, position in positions_tried(task, config)):
        return
    if options:
        read, mend = "each option", "have probe.positions hold option_end, and prompt.layouts hold branched"
    else:
        read, mend = (
            "a row at its answer",
            "have probe.positions hold answer, prompt.layouts listed, and no permutations",
        )
    raise ConfigError(
        f"task {task.name}: hidden-kd matches the state of {read}, as this student reads it, and the probe's settings read "
        f"none of the teacher; {mend}, or take a student of another kind or another method"
    )
