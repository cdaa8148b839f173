"""report.html of a study: one page that asks nothing of the network, in the style of a run's report."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from jinja2 import ChoiceLoader, Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from probekd.config import dump_config
from probekd.report import charts
from probekd.report.formats import num, p_value, pct, points, signed, whole_pct
from probekd.study.choices import SEARCHED, as_labels_note
from probekd.study.comparisons import Comparison
from probekd.study.config import StudyConfig, teacher_label
from probekd.study.markdown import counted
from probekd.study.plan import READERS
from probekd.study.summary import Mean, Summary

# Shape and colour go together, as in a run's report; what is not here is in the tables.
DRAWN = {
    "labels": ("triangle", "plain"),
    "self-train": ("wedge", "other"),
    "calibrated-logit-kd": ("square", "teacher"),
    "probe-kd": ("circle", "probe"),
    "blend-kd": ("diamond", "student"),
}
METRIC_WORDS = {"accuracy": "accuracy", "nll": "log-loss", "ece": "calibration error"}
Place = tuple[str, str, str, str]
"""Task, teacher, student, pool."""


def render(study: StudyConfig, summary: Summary) -> str:
    """The page as text; the same figures give the same bytes."""
    environment = Environment(
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        loader=ChoiceLoader([PackageLoader("probekd", "study"), PackageLoader("probekd", "report")]),
    )
    environment.filters.update(
        pct=pct,
        num=num,
        points=points,
        p_value=p_value,
        signed=signed,
        words=METRIC_WORDS.get,
        pool=pool_words,
        counted=counted,
    )
    environment.globals.update(mark_of=mark_of, outcome=outcome, drawn=tuple(DRAWN))
    return environment.get_template("study.html.j2").render(
        study=study,
        name=study.name or "study",
        teachers=[teacher_label(t) for t in study.teachers],
        students=[s.label for s in study.students],
        summary=summary,
        record_against=record_against(summary),
        definitions=charts.mark_definitions(),
        curves=curves(summary.means),
        differences=differences(summary.comparisons),
        means=means_by_task(summary.means),
        as_labels=as_labels_note(summary.choices),
        searched=[name for name in SEARCHED if any(name in c.chosen for c in summary.choices)],
        costs=costs(summary.means),
        readers=READERS,
        config=dump_config(study),
    )


def pool_words(pool: str) -> str:
    """A pool in words."""
    return {"0": "labelled rows only", "all": "with the pool"}.get(pool, f"with {pool} pool rows")


def record_against(summary: Summary) -> list[dict[str, Any]]:
    """What probe-kd did against each rival by log-loss: comparisons in which it is surely better, surely worse, neither."""
    found = []
    ours = [c for c in summary.comparisons if c.metric == "nll" and c.a == "probe-kd"]
    for rival in dict.fromkeys(c.b for c in ours):
        words = [outcome(c) for c in ours if c.b == rival]
        counts = {word or "neither": words.count(word) for word in ("better", "worse", "")}
        found.append({"rival": rival, **counts})
    return found


def curves(means: Sequence[Mean]) -> list[dict[str, Any]]:
    """Accuracy against label budget: a figure for each teacher, student and pool, a panel for each task."""
    figures: dict[tuple[str, str, str], list[dict[str, Any]]] = {}
    places = dict.fromkeys((m.task, m.teacher, m.student, m.pool) for m in means if m.student)
    for place in sorted(places, key=lambda p: (p[1], p[2], p[3] != "all", p[3])):
        task, teacher, student, pool = place
        bands = [band for method in DRAWN if (band := _band(means, place, method))]
        if bands:
            chart = charts.band_chart(
                bands,
                title=f"{task}: accuracy of the student by number of labels, range over the seeds",
                x_name="labels",
                y_format=pct,
                tick_format=whole_pct,
            )
            figures.setdefault((teacher, student, pool), []).append(
                {"task": task, "chart": chart, "readers": _readers(means, task, teacher)}
            )
    return [
        {"teacher": teacher, "student": student, "pool": pool, "panels": panels}
        for (teacher, student, pool), panels in figures.items()
    ]


def _readers(means: Sequence[Mean], task: str, teacher: str) -> dict[str, Mean]:
    """What the teacher's own readers score at the largest budget."""
    some = [m for m in means if not m.student and (m.task, m.teacher) == (task, teacher)]
    most = max((m.budget for m in some), default=0)
    return {m.method: m for m in some if m.budget == most}


def _band(means: Sequence[Mean], place: Place, method: str) -> charts.Band | None:
    cells = sorted(
        (m for m in means if (m.task, m.teacher, m.student, m.pool, m.method) == (*place, method)),
        key=lambda m: m.budget,
    )
    if not cells:
        return None
    mark, tone = DRAWN[method]
    return charts.Band(
        name=method, mark=mark, tone=tone, points=tuple((m.budget, *m.scores["accuracy"]) for m in cells)
    )


def differences(comparisons: Sequence[Comparison]) -> list[dict[str, Any]]:
    """A table for each method of ours, metric, teacher, student and pool: tasks and budgets by rows, rivals by columns.

    ``first`` are those that are not folded away: accuracy and log-loss of probe-kd with the largest pool.
    """
    found = []
    most = max((c.pool for c in comparisons), key=_pool_size, default="0")
    places = dict.fromkeys((c.a, c.metric, c.teacher, c.student, c.pool) for c in comparisons)
    order = list(METRIC_WORDS)
    for place in sorted(places, key=lambda p: (p[0] != "probe-kd", p[4] != most, order.index(p[1]), p[2:])):
        ours, metric, teacher, student, pool = place
        some = [c for c in comparisons if (c.a, c.metric, c.teacher, c.student, c.pool) == place]
        rows: dict[tuple[str, int], dict[str, Comparison]] = {}
        for c in sorted(some, key=lambda c: (c.task, c.budget)):
            rows.setdefault((c.task, c.budget), {})[c.b] = c
        found.append(
            {
                "ours": ours,
                "metric": metric,
                "teacher": teacher,
                "student": student,
                "pool": pool,
                "first": ours == "probe-kd" and metric != "ece" and pool == most,
                "rivals": list(dict.fromkeys(c.b for c in some)),
                "rows": rows,
            }
        )
    return found


def _pool_size(pool: str) -> float:
    return math.inf if pool == "all" else int(pool)


def outcome(comparison: Comparison) -> str:
    """``better``, ``worse`` or nothing: whether ours is surely so, corrected for the number of rivals."""
    if comparison.p_holm >= 0.05:
        return ""
    favours = comparison.difference > 0 if comparison.metric == "accuracy" else comparison.difference < 0
    return "better" if favours else "worse"


def means_by_task(means: Sequence[Mean]) -> list[dict[str, Any]]:
    """Every mean, task by task: methods by rows, budgets by columns."""
    found = []
    for task, teacher in dict.fromkeys((m.task, m.teacher) for m in means):
        some = [m for m in means if (m.task, m.teacher) == (task, teacher)]
        rows: dict[tuple[str, str, str], dict[int, Mean]] = {}
        for m in some:
            rows.setdefault((m.student, m.method, m.pool), {})[m.budget] = m
        found.append({"task": task, "teacher": teacher, "budgets": sorted({m.budget for m in some}), "rows": rows})
    return found


def costs(means: Sequence[Mean]) -> list[dict[str, Any]]:
    """Mean teacher tokens, student steps and seconds of each teacher, student, method and pool, over tasks and budgets."""
    groups: dict[tuple[str, str, str, str], list[Mean]] = {}
    for m in means:
        if m.student:
            groups.setdefault((m.teacher, m.student, m.method, m.pool), []).append(m)
    return [
        {
            **{"teacher": teacher, "student": student, "method": method, "pool": pool},
            **{name: sum(m.costs[name] for m in some) / len(some) for name in some[0].costs},
        }
        for (teacher, student, method, pool), some in groups.items()
    ]


def mark_of(method: str) -> Markup:
    """The mark of a method that is drawn; nothing for others."""
    return charts.legend_mark(*DRAWN[method]) if method in DRAWN else Markup("")
