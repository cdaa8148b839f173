"""Evidence made up row by row: three sources that know the answers to different degrees."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest

from probekd.methods import Evidence, View
from probekd.tasks.base import Example

Build = Callable[..., tuple[Evidence, np.ndarray]]


def made(
    *, n: int = 60, m: int = 90, knows: tuple[float, ...] = (2.0, 0.5, 2.0), ragged: bool = True, seed: int = 0
) -> tuple[Evidence, np.ndarray]:
    """Evidence of rows with 2 to 4 options, and the hidden answers of its pool; views err independently."""
    draw = np.random.default_rng(seed)
    counts = 2 + np.arange(n + m) % 3 if ragged else np.full(n + m, 3)
    answers = draw.integers(counts)
    options = [tuple("abcd"[:k]) for k in counts]
    rows = [
        Example(id=f"r{i:03}", question=f"{i}?", options=o, answer=int(a) if i < n else None)
        for i, (o, a) in enumerate(zip(options, answers, strict=True))
    ]
    names = ("probe", "output_calibrated", "student_alone", "student", "probe_in_sample")
    views = {}
    for number, name in enumerate(names):
        z = draw.normal(size=(n + m, counts.max())) + knows[number % len(knows)] * np.eye(counts.max())[answers]
        z = np.where(np.arange(counts.max()) < counts[:, None], z, -np.inf)
        views[name] = View(honest=z[:n], pool=z[n:])
    evidence = Evidence(labelled=tuple(rows[:n]), pool=tuple(rows[n:]), folds=np.arange(n) % 5, views=views)  # type: ignore[arg-type]
    return evidence, answers[n:]


@pytest.fixture
def evidence_of() -> Build:
    return made
