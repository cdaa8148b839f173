"""What the search chose: how often each value of each setting, by student, method and pool."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from probekd.methods import RECIPES
from probekd.study.results import Result

SEARCHED = ("alpha", "temperature", "l2", "learning_rate")
MIXED = ("alpha", "temperature")
"""What gold labels alone leave nothing to choose of."""


@dataclass(frozen=True, kw_only=True)
class Choices:
    """Of a student, method and pool, over tasks, teachers, budgets and seeds.

    Attributes:
        cells: All of them.
        chosen: ``setting -> value -> cells``, by ``SEARCHED``; without a setting where there is nothing to choose.
        as_labels: Cells whose targets teach nothing, so that the student is that of ``labels``.
    """

    student: str
    method: str
    pool: str
    cells: int
    chosen: Mapping[str, Mapping[str, int]]
    as_labels: int


def count_choices(results: Sequence[Result]) -> list[Choices]:
    """Every student and method, in the order of ``RECIPES``."""
    order = tuple(RECIPES)
    groups: dict[tuple[str, int, str], list[Result]] = {}
    for r in results:
        if r.student:
            groups.setdefault((r.student, order.index(r.method), r.pool), []).append(r)
    return [_choices(groups[place]) for place in sorted(groups)]


def _choices(cells: Sequence[Result]) -> Choices:
    first, gold = cells[0], RECIPES[cells[0].method].gold  # type: ignore[index]
    counts = {
        name: Counter(r.chosen[name] for r in cells if name in r.chosen)
        for name in SEARCHED
        if not (gold and name in MIXED)
    }
    alone = first.pool == "0" and not gold
    return Choices(
        student=first.student,
        method=first.method,
        pool=first.pool,
        cells=len(cells),
        chosen={name: {f"{v:g}": n for v, n in sorted(found.items())} for name, found in counts.items() if found},
        as_labels=sum(r.chosen.get("alpha") == 1 for r in cells) if alone else 0,
    )


def as_labels_note(choices: Sequence[Choices]) -> str | None:
    """Why some differences are exactly 0; None where none is for this reason."""
    found = [c for c in choices if c.as_labels]
    if not found:
        return None
    many = len({c.student for c in choices}) > 1
    where = ", ".join(
        f"{c.method}{f' ({c.student})' if many else ''} in {c.as_labels} of {c.cells} cells without a pool"
        for c in found
    )
    return (
        "A difference of exactly 0 is no mistake: where the search gave gold labels all the weight (alpha 1) and there is "
        f"no pool, targets teach nothing, and the student is that of labels. So it was of {where}."
    )
