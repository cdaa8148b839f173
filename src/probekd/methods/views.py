"""Views: what a source says of a task's rows, and all that the methods may learn from."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np

from probekd.tasks.base import Example

ViewName = Literal[
    "probe",
    "probe_in_sample",
    "probe_shuffled",
    "output_raw",
    "output_debiased",
    "output_calibrated",
    "student_alone",
    "student",
]
"""``probe``: out-of-fold and pooled. ``probe_in_sample``: labelled rows by models that saw them. ``probe_shuffled``: by a
probe of shuffled labels. ``output_*``: the best output readout of a care. ``student_alone``: the student's frozen embedding
with a linear head. ``student``: a trained labels-only student, which has no word on its own training rows."""


@dataclass(frozen=True, kw_only=True)
class View:
    """Logits of one source, -inf beyond a row's options.

    Attributes:
        honest: (n, K) of the labelled rows, out of fold unless the source's name says otherwise; of a row that no fold
            holds out, its gold label.
        pool: (m, K) of the unlabelled rows.
    """

    honest: np.ndarray
    pool: np.ndarray

    @classmethod
    def of(cls, honest: Sequence[np.ndarray], pool: Sequence[np.ndarray], width: int) -> View:
        """A view from logits row by row, (k_i,) each; what lies beyond ``width`` is absent anyway."""
        return cls(honest=padded(honest, width), pool=padded(pool, width))


@dataclass(frozen=True, kw_only=True)
class Evidence:
    """What is known of a task before a student is trained.

    Attributes:
        labelled: Rows with answers, in the order of every view.
        pool: Rows without.
        folds: (n,) fold of each labelled row; -1 for the only row of its class, which no fold holds out.
        views: By name; those that the methods at hand need.
    """

    labelled: tuple[Example, ...]
    pool: tuple[Example, ...]
    folds: np.ndarray
    views: Mapping[ViewName, View]

    @property
    def answers(self) -> np.ndarray:
        """(n,) gold indices."""
        return np.array([e.answer for e in self.labelled])

    @property
    def width(self) -> int:
        """K, the most options that a row has."""
        return widest((*self.labelled, *self.pool))

    def first(self, pool: int) -> Evidence:
        """The same with the first rows of the pool alone; 0 leaves the labelled rows."""
        views = {name: replace(view, pool=view.pool[:pool]) for name, view in self.views.items()}
        return replace(self, pool=self.pool[:pool], views=views)


def student_view(labelled: Sequence[Example], probs: Sequence[np.ndarray], width: int) -> View:
    """What a trained student says of the pool, (k_i,) each; of its own training rows it has no say.

    A probability that has underflowed to 0 becomes the smallest that there is: the logit of an option that a row has is
    finite.
    """
    said = [np.log(np.maximum(p, np.finfo(float).tiny)) for p in probs]
    return View.of([np.zeros(len(e.options)) for e in labelled], said, width)


def widest(examples: Sequence[Example]) -> int:
    """The most options that a row has."""
    return max(len(e.options) for e in examples)


def padded(rows: Sequence[np.ndarray], width: int) -> np.ndarray:
    """Rows (k_i,) as one array (n, width), -inf beyond each."""
    out = np.full((len(rows), width), -np.inf)
    for i, row in enumerate(rows):
        out[i, : len(row)] = row[:width]
    return out
