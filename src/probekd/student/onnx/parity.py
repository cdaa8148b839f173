"""Whether an exported student answers as the student does, and where it does not."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from probekd.errors import ModelError
from probekd.tasks.base import Example


@dataclass(frozen=True, kw_only=True)
class Bound:
    """How far probabilities may move.

    Attributes:
        worst: Largest change of a probability, of any row.
        mean: Mean over rows of their largest change.
        agreement: Share of rows whose pick must stay.
    """

    worst: float
    mean: float
    agreement: float


# Float32 differs in the order of its sums alone. Eight bits do move probabilities, and rows that were nearly even change
# their pick; with the smoothing of int8.py MiniLM students stay at half of this.
EXACT = Bound(worst=1e-4, mean=1e-4, agreement=1.0)
QUANTISED = Bound(worst=1.0, mean=0.05, agreement=0.9)


@dataclass(frozen=True, kw_only=True)
class Parity:
    """What a comparison found.

    Attributes:
        rows: Rows compared.
        worst: Largest change of a probability.
        worst_row: Id of the row where it is.
        mean: Mean over rows of their largest change.
        agreement: Share of rows with the same pick.
    """

    rows: int
    worst: float
    worst_row: str
    mean: float
    agreement: float

    def within(self, bound: Bound) -> bool:
        """Whether it is as near as it must be."""
        near = self.worst <= bound.worst and self.mean <= bound.mean
        return near and self.agreement >= bound.agreement

    def as_dict(self) -> dict[str, Any]:
        """For a JSON file, without the row's id, which may be a reader's own."""
        return {name: value for name, value in asdict(self).items() if name != "worst_row"}


def compare(examples: Sequence[Example], plain: Sequence[np.ndarray], exported: Sequence[np.ndarray]) -> Parity:
    """Compare the distributions (k_i,) of rows, of which there is at least one.

    A pick that two options share within the exactness of float32 counts as kept, whichever of them it is.
    """
    changes = np.array([np.nan_to_num(np.abs(p - q), nan=1.0).max() for p, q in zip(plain, exported, strict=True)])
    kept = [p[q.argmax()] >= p.max() - EXACT.worst for p, q in zip(plain, exported, strict=True)]
    worst = int(changes.argmax())
    return Parity(
        rows=len(examples),
        worst=float(changes[worst]),
        worst_row=examples[worst].id,
        mean=float(changes.mean()),
        agreement=float(np.mean(kept)),
    )


def require(found: Parity, bound: Bound, file: str, remedy: str) -> None:
    """Raise ModelError, naming the worst row, unless an exported file is within its bound."""
    if not found.within(bound):
        raise ModelError(
            f"{file} does not answer as the student does: on {found.rows} rows probabilities move by {found.mean:.2g} on "
            f"average (at most {bound.mean:g} is allowed) and by {found.worst:.2g} on row {found.worst_row!r} "
            f"(at most {bound.worst:g}), and {found.agreement:.1%} of the picks stay (at least {bound.agreement:.0%}); "
            f"nothing was written: {remedy}"
        )
