"""What a study asks of any student: learn a draw by a method, with the search that all methods get."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np

from probekd.methods import Recipe, View
from probekd.methods.views import Evidence
from probekd.tasks.base import Example

Hidden = Callable[[Sequence[Example]], Mapping[str, np.ndarray]]
"""The teacher's state of each row by id: (D,), or (k_i, D) of its options."""


@dataclass(frozen=True, kw_only=True)
class Lesson:
    """One cell's work.

    Attributes:
        name: Of the method.
        recipe: What it learns from.
        evidence: Labelled rows, the cell's pool, and the views of both.
        validation: Labelled rows that choose.
        hidden: Where to find the teacher's states.
        seed: Of the draw.
    """

    name: str
    recipe: Recipe
    evidence: Evidence
    validation: tuple[Example, ...]
    hidden: Hidden
    seed: int


@dataclass(frozen=True, kw_only=True)
class Tried:
    """One setting of the search and its log-loss on the validation rows."""

    settings: Mapping[str, float]
    nll: float


@dataclass(frozen=True, kw_only=True)
class Trained:
    """A student that has learnt.

    Attributes:
        probs: Distribution (k_i,) of each row that was asked about.
        chosen: Settings that were chosen.
        tried: The whole search.
        steps: Gradient steps of the student that was kept; 0 where a convex problem was solved.
        seconds: That the whole search took.
    """

    probs: tuple[np.ndarray, ...]
    chosen: Mapping[str, float]
    tried: tuple[Tried, ...]
    steps: int
    seconds: float = 0.0

    def search(self) -> dict[str, Any]:
        """For the record."""
        return {
            "chosen": dict(self.chosen),
            "search": [{**one.settings, "nll": one.nll} for one in self.tried],
            "steps": self.steps,
        }


class Learner(Protocol):
    """A kind of student in front of a task."""

    def learn(self, lesson: Lesson, asked: Sequence[Example]) -> Trained:
        """Train at every setting, keep the best by validation log-loss, and answer rows that it has not learnt from."""
        ...

    def alone(self, evidence: Evidence) -> View:
        """The view ``student_alone`` of labelled rows and pool."""
        ...
