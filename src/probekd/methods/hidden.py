"""Where the teacher's hidden states are matched, for ``hidden-kd``."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from probekd.config import Layout, Position
from probekd.probes.probe import Probe
from probekd.states import States
from probekd.tasks.base import Example


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


def hidden_place(probe: Probe) -> HiddenPlace:
    """Where the best single reader reads; in multiple choice the best with a state for each option, as a student has."""
    options = probe.task_kind == "multiple_choice"
    single = [c for c in probe.candidates if c.reader.window == 1 and (c.reader.position != "answer") == options]
    reader = min(single, key=lambda c: c.nll).reader if single else probe.reader
    return HiddenPlace(layout=reader.layout, position=reader.position, depth=reader.depth)
