"""A probe fitted to planted states: three classes, one depth, everything known."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from probekd.config import ProbeConfig
from probekd.probes.fit import fit_probes
from probekd.probes.probe import Probe
from probekd.tasks.base import Example, Task

Build = Callable[..., Any]
N, WIDTH = 120, 5
CONFIG = ProbeConfig(folds=3, l2=(0.3,), windows=(1,), stack=False, tolerance=1e-6)


def fitted(build: Build, *, n: int = N, signal: float = 1.2) -> tuple[Probe, Any, list[Example]]:
    generator = np.random.default_rng(0)
    rows = [
        Example(id=f"r{i:03}", question=f"{i}?", options=("a", "b", "c"), answer=int(a))
        for i, a in enumerate(np.arange(n) % 3)
    ]
    x = {e.id: generator.normal(size=WIDTH) + signal * np.eye(WIDTH)[e.answer or 0] for e in rows}
    states = build(
        splits={"train": [e.id for e in rows]},
        values={("listed", "answer", 0): x},
        columns={"listed": {"num_options": {e.id: 3 for e in rows}}},
    )
    task = Task(name="t", kind="classification", splits={"train": tuple(rows)}, labels=("a", "b", "c"))
    probe = fit_probes(states, task, config=CONFIG)
    by_id = {e.id: e for e in rows}
    return probe, states, [by_id[i] for i in probe.ids]
