"""Paired differences between methods over seeds and test rows, and how often one is at least level with the rest."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from probekd.evaluation.hierarchical import Difference, hierarchical, holm
from probekd.files import replacing
from probekd.methods import RECIPES
from probekd.study.results import Result

OURS = ("probe-kd", "blend-kd")
METRICS = ("accuracy", "nll", "ece")


@dataclass(frozen=True, kw_only=True)
class Panel:
    """Cells that are compared: one task, teacher, student, budget and pool, every method and seed."""

    task: str
    teacher: str
    student: str
    budget: int
    pool: str
    cells: Mapping[tuple[str, int], Result]

    @property
    def methods(self) -> tuple[str, ...]:
        """Methods with a cell, in the order of ``RECIPES``."""
        there = {method for method, _ in self.cells}
        return tuple(method for method in RECIPES if method in there)

    @property
    def complete(self) -> list[int]:
        """Seeds under which every method of the panel was trained: shares are taken over these alone."""
        return self.seeds(*self.methods)

    def seeds(self, *methods: str) -> list[int]:
        """Seeds under which all of some methods were trained."""
        return sorted(set.intersection(*({s for m, s in self.cells if m == method} for method in methods)))


def panels(results: Iterable[Result]) -> list[Panel]:
    """The panels of a study; methods that learn from no pool stand in the panels of every pool."""
    students = [r for r in results if r.student]
    found: dict[tuple[str, str, str, int, str], dict[tuple[str, int], Result]] = {}
    for r in students:
        pools = {r.pool}
        if _takes_no_pool(r):
            pools = {o.pool for o in students if _same(o, r) and not _takes_no_pool(o)} or pools
        for pool in pools:
            found.setdefault((r.task, r.teacher, r.student, r.budget, pool), {})[r.method, r.seed] = r
    names = ("task", "teacher", "student", "budget", "pool")
    return [Panel(**dict(zip(names, place, strict=True)), cells=found[place]) for place in sorted(found)]  # type: ignore[arg-type]


def _takes_no_pool(result: Result) -> bool:
    return RECIPES[result.method].pool == "never"  # type: ignore[index]


def _same(one: Result, other: Result) -> bool:
    names = ("task", "teacher", "student", "budget")
    return all(getattr(one, name) == getattr(other, name) for name in names)


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """``a`` minus ``b`` on the same rows and seeds: positive accuracy, negative log-loss and ECE favour ``a``.

    ``p_holm`` is adjusted for the number of rivals of ``a`` in the panel.
    """

    task: str
    teacher: str
    student: str
    budget: int
    pool: str
    metric: str
    a: str
    b: str
    difference: float
    se: float
    ci: list[float]
    p_value: float
    p_holm: float
    seeds: int

    def as_dict(self) -> dict[str, Any]:
        """JSON object."""
        return asdict(self)


def compare_panel(panel: Panel, *, resamples: int) -> list[Comparison]:
    """Every method of ``OURS`` in a panel against every other method there."""
    pairs = [(a, b) for a in OURS if a in panel.methods for b in panel.methods if a != b and panel.seeds(a, b)]
    # An ECE is one number a seed: of a single seed nothing says how sure a difference is.
    compared = {m: [p for p in pairs if m != "ece" or len(panel.seeds(*p)) > 1] for m in METRICS}
    comparisons: list[Comparison] = []
    for metric, some in compared.items():
        differences = _differences(panel, some, metric, resamples)
        for ours in dict.fromkeys(a for a, _ in some):
            rivals = [b for a, b in some if a == ours]
            adjusted = holm([differences[ours, b].p_value for b in rivals])
            comparisons += [
                _comparison(panel, metric, (ours, b), differences[ours, b], p)
                for b, p in zip(rivals, adjusted, strict=True)
            ]
    return comparisons


def _comparison(panel: Panel, metric: str, pair: tuple[str, str], d: Difference, p_holm: float) -> Comparison:
    return Comparison(
        task=panel.task,
        teacher=panel.teacher,
        student=panel.student,
        budget=panel.budget,
        pool=panel.pool,
        metric=metric,
        a=pair[0],
        b=pair[1],
        difference=d.difference,
        se=d.se,
        ci=d.ci,
        p_value=d.p_value,
        p_holm=p_holm,
        seeds=d.seeds,
    )


def _differences(
    panel: Panel, pairs: Sequence[tuple[str, str]], metric: str, resamples: int
) -> dict[tuple[str, str], Difference]:
    """Of accuracy and log-loss over seeds and rows; of the ECE, which no row has by itself, over seeds.

    Pairs with the same seeds share their resamples, which cost more than what is done with them.
    """
    groups: dict[tuple[int, ...], list[tuple[str, str]]] = {}
    for pair in pairs:
        groups.setdefault(tuple(panel.seeds(*pair)), []).append(pair)
    found: dict[tuple[str, str], Difference] = {}
    for seeds, some in groups.items():
        values = {
            place: _by_row(panel.cells[place], metric)
            for pair in some
            for m in pair
            for place in ((m, s) for s in seeds)
        }
        stacked = np.array([[values[a, s] - values[b, s] for s in seeds] for a, b in some])
        found |= dict(zip(some, hierarchical(stacked, resamples=resamples), strict=True))
    return found


def _by_row(result: Result, metric: str) -> np.ndarray:
    if metric == "ece":
        return np.array([result.scores["ece"]])
    outcomes = result.outcomes
    return (outcomes.hits if metric == "accuracy" else outcomes.losses).astype(np.float64)


def behind(one: Result, other: Result, metric: str) -> tuple[float, float]:
    """By how much one cell is worse than another of the same seed, and the standard error of that over rows."""
    sign = -1 if metric == "accuracy" else 1
    difference = sign * (_by_row(one, metric) - _by_row(other, metric))
    return float(difference.mean()), float(difference.std() / len(difference) ** 0.5)


@dataclass(frozen=True, kw_only=True)
class Standing:
    """How a method does against the best of others, cell by cell."""

    cells: int
    level: int
    ahead: int

    @property
    def level_share(self) -> float:
        """Share of cells in which it is at most a standard error worse than the best."""
        return self.level / self.cells if self.cells else 0.0


def standing(panels: Sequence[Panel], method: str, metric: str, among: Sequence[str]) -> Standing:
    """In how many cells (panel and seed) a method is level with the best of some others, and in how many ahead of it."""
    level = ahead = cells = 0
    for panel in panels:
        for seed in panel.complete if method in panel.methods else ():
            mine = panel.cells[method, seed]
            rivals = [panel.cells[m, seed] for m in among if m != method and (m, seed) in panel.cells]
            if not rivals:
                continue
            sign = -1 if metric == "accuracy" else 1
            best = min(rivals, key=lambda r: sign * r.scores[metric])
            worse, error = behind(mine, best, metric)
            cells += 1
            level += worse <= error
            ahead += worse < 0
    return Standing(cells=cells, level=level, ahead=ahead)


def write_comparisons(path: Path, comparisons: Sequence[Comparison]) -> None:
    """One row a difference."""
    with replacing(path) as unfinished:
        pq.write_table(pa.Table.from_pylist([c.as_dict() for c in comparisons]), unfinished, compression="zstd")
