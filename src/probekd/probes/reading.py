"""What of a teacher a fitted probe must be given to read rows that it has not seen."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from probekd.config import Layout
from probekd.extraction import default_positions
from probekd.probes.probe import Probe
from probekd.tasks.base import Task


def passes(probe: Probe, task: Task, *, said: Sequence[Layout] = ()) -> Iterator[dict[str, Any]]:
    """The arguments of ``extract``, one set for each layout: the probe's layouts, positions and depths, and no more.

    Args:
        probe: What is to be read with.
        task: Its task.
        said: Layouts whose output readouts are wanted besides those that the probe itself listens to; all others end
            at the probe's deepest depth.
    """
    needs = dict(probe.needs)
    spoken = (*said, *probe.layouts_of_words)
    for layout in spoken:
        if layout not in needs:
            needs[layout] = (default_positions(task, layout)[:1], (probe.reader.depth,))
    for layout, (positions, depths) in needs.items():
        yield {"layouts": (layout,), "positions": positions, "depths": depths, "outputs": layout in spoken}
