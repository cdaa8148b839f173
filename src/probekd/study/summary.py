"""A study in figures: means over the seeds, differences with intervals, who keeps level, what the gate was worth, costs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from operator import attrgetter
from typing import Any

import numpy as np

from probekd.evaluation.gate import METHOD_OF
from probekd.methods import RECIPES
from probekd.study.choices import Choices, count_choices
from probekd.study.comparisons import METRICS, Comparison, Panel, compare_panel, panels, standing
from probekd.study.plan import READERS
from probekd.study.results import Result
from probekd.study.verdicts import judge_verdicts

NOT_RIVALS = ("probe-kd-in-sample", "probe-kd-shuffled")
"""An ablation and a control: nobody would use them."""
COSTS = ("teacher_tokens", "steps", "seconds")


@dataclass(frozen=True, kw_only=True)
class Mean:
    """One method in one panel, over its seeds.

    Attributes:
        scores: ``metric -> (mean, lowest, highest)`` over the seeds.
        target_accuracy: Mean share of the pool's targets that name the gold option; None where there are none.
        costs: Mean teacher tokens, student steps and seconds.
    """

    task: str
    teacher: str
    student: str
    budget: int
    pool: str
    method: str
    seeds: int
    scores: Mapping[str, tuple[float, float, float]]
    target_accuracy: float | None
    costs: Mapping[str, float]


@dataclass(frozen=True, kw_only=True)
class Share:
    """In how many cells something held.

    Attributes:
        what: In words.
        metric: ``nll`` or ``accuracy``.
        budget: Label budget; None = all of them.
        held: Cells in which it held.
        cells: All cells.
    """

    what: str
    metric: str
    budget: int | None
    held: int
    cells: int


@dataclass(frozen=True, kw_only=True)
class Verdict:
    """A verdict of the gate and what came of it, in one panel over the seeds."""

    task: str
    teacher: str
    student: str
    budget: int
    pool: str
    verdicts: Mapping[str, int]
    winners: Mapping[str, int]
    held: int
    seeds: int


@dataclass(frozen=True, kw_only=True)
class Summary:
    """Everything that is shown of a study."""

    means: tuple[Mean, ...]
    comparisons: tuple[Comparison, ...]
    shares: tuple[Share, ...]
    verdicts: tuple[Verdict, ...]
    choices: tuple[Choices, ...]
    refused: Mapping[str, str]

    def as_dict(self) -> dict[str, Any]:
        """JSON object, without the comparisons, which are many."""
        return {name: value for name, value in asdict(self).items() if name != "comparisons"}


def summarise(results: Sequence[Result], *, refused: Mapping[str, str], resamples: int) -> Summary:
    """Everything that is shown, from the cells."""
    groups = panels(results)
    return Summary(
        means=tuple(_reader_means(results) + [m for panel in groups for m in _means(panel)]),
        comparisons=tuple(c for panel in groups for c in compare_panel(panel, resamples=resamples)),
        shares=tuple(_shares(groups)),
        verdicts=tuple(_verdict(panel) for panel in groups),
        choices=tuple(count_choices(results)),
        refused=dict(sorted(refused.items())),
    )


def _means(panel: Panel) -> list[Mean]:
    found = []
    for method in panel.methods:
        cells = [panel.cells[method, seed] for seed in panel.seeds(method)]
        found.append(_mean(cells, panel.pool))
    return found


def _reader_means(results: Sequence[Result]) -> list[Mean]:
    groups: dict[tuple[Any, ...], list[Result]] = {}
    for r in results:
        if r.method in READERS and not r.student:
            groups.setdefault((r.task, r.teacher, r.budget, READERS.index(r.method)), []).append(r)
    return [_mean(groups[place], "0") for place in sorted(groups)]


def _mean(cells: Sequence[Result], pool: str) -> Mean:
    first = cells[0]
    scores = {}
    for metric in METRICS:
        values = [c.scores[metric] for c in cells]
        scores[metric] = (float(np.mean(values)), min(values), max(values))
    hits = [c.record["target_accuracy"] for c in cells if c.record.get("target_accuracy") is not None]
    return Mean(
        task=first.task,
        teacher=first.teacher,
        student=first.student,
        budget=first.budget,
        pool=pool,
        method=first.method,
        seeds=len(cells),
        scores=scores,
        target_accuracy=float(np.mean(hits)) if hits else None,
        costs={name: float(np.mean([c.record.get(name) or 0 for c in cells])) for name in COSTS},
    )


def _shares(groups: Sequence[Panel]) -> list[Share]:
    """Who keeps level with the best, and whether the gate's word held: over all budgets, and at each."""
    methods = [m for m in RECIPES if m not in NOT_RIVALS]
    budgets: list[int | None] = [None, *sorted({p.budget for p in groups})]
    found = []
    for metric in ("nll", "accuracy"):
        for budget in budgets:
            some = [p for p in groups if budget in (None, p.budget)]
            for method in methods:
                one = standing(some, method, metric, methods)
                if one.cells:
                    level = f"{method} is at most a standard error behind the best other method"
                    ahead = f"{method} is ahead of every other method"
                    found.append(Share(what=level, metric=metric, budget=budget, held=one.level, cells=one.cells))
                    found.append(Share(what=ahead, metric=metric, budget=budget, held=one.ahead, cells=one.cells))
            for word, named in (("verdict", "the gate named"), ("leader", "who led out of fold, surely or not, was")):
                for best, among in (
                    ("the best of what the gate chooses among", tuple(METHOD_OF.values())),
                    ("the best of all methods", methods),
                ):
                    judged = judge_verdicts(some, metric, among, attrgetter(word))
                    held = sum(j.held for j in judged)
                    what = f"{named} {best}, or one within a standard error"
                    if judged:
                        found.append(Share(what=what, metric=metric, budget=budget, held=held, cells=len(judged)))
    return found


def _verdict(panel: Panel) -> Verdict:
    judged = judge_verdicts([panel], "nll", [m for m in RECIPES if m not in NOT_RIVALS])
    verdicts, winners = ([getattr(j, name) for j in judged] for name in ("verdict", "winner"))
    return Verdict(
        task=panel.task,
        teacher=panel.teacher,
        student=panel.student,
        budget=panel.budget,
        pool=panel.pool,
        verdicts={v: verdicts.count(v) for v in sorted(set(verdicts))},
        winners={w: winners.count(w) for w in sorted(set(winners))},
        held=sum(j.held for j in judged),
        seeds=len(judged),
    )
