"""results.md: a study's tables for people who read text."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from probekd.study.choices import SEARCHED, Choices, as_labels_note
from probekd.study.comparisons import Comparison
from probekd.study.summary import Mean, Share, Summary


def markdown(summary: Summary) -> str:
    """The whole page."""
    parts = ["# Results of the study", "", "Means over seeds; made by `probekd study`.", ""]
    for place in dict.fromkeys((m.task, m.teacher) for m in summary.means):
        some = [m for m in summary.means if (m.task, m.teacher) == place]
        parts += [f"## {place[0]}, read by {place[1]}", "", means_table(some), ""]
    parts += ["## Paired differences", "", differences_table(summary.comparisons), ""]
    if note := as_labels_note(summary.choices):
        parts += [note, ""]
    parts += ["## What the search chose", "", choices_table(summary.choices), ""]
    parts += ["## How often", "", shares_table(summary.shares), ""]
    parts += ["## The gate, and what happened", "", _verdicts_table(summary), ""]
    if summary.refused:
        parts += ["## Refused", "", *(f"- {name}: {why}" for name, why in summary.refused.items()), ""]
    return "\n".join(parts)


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A table in Markdown."""
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def means_table(means: Sequence[Mean]) -> str:
    """Methods by rows; accuracy, log-loss and ECE for each budget."""
    budgets = sorted({m.budget for m in means})
    names = list(dict.fromkeys((m.student, m.method, m.pool) for m in means))
    rows = []
    for student, method, pool in names:
        cells = {m.budget: m for m in means if (m.student, m.method, m.pool) == (student, method, pool)}
        figures = [_figures(cells[b]) if b in cells else "" for b in budgets]
        rows.append([student or "the teacher", method.replace("_", " "), _pool(pool), *figures])
    return table(("student", "method", "pool", *(f"{b} labels" for b in budgets)), rows)


def _figures(mean: Mean) -> str:
    accuracy, nll, ece = (mean.scores[name][0] for name in ("accuracy", "nll", "ece"))
    return f"{accuracy:.3f} / {nll:.3f} / {ece:.3f}"


def _pool(pool: str) -> str:
    return "" if pool == "0" else pool


def differences_table(comparisons: Sequence[Comparison]) -> str:
    """Accuracy and log-loss differences of probe-kd, panel by panel; the rest is in comparisons.parquet."""
    rows = []
    for c in comparisons:
        if c.metric == "ece" or c.a != "probe-kd":
            continue
        scale, unit = (100, " points") if c.metric == "accuracy" else (1, "")
        low, high = (scale * end for end in c.ci)
        digits = 1 if c.metric == "accuracy" else 3
        rows.append(
            [
                c.task,
                c.teacher,
                c.student,
                str(c.budget),
                _pool(c.pool),
                f"{c.a} minus {c.b}",
                "log-loss" if c.metric == "nll" else c.metric,
                f"{scale * c.difference:+.{digits}f}{unit} [{low:+.{digits}f}, {high:+.{digits}f}]",
                f"{c.p_holm:.3f}",
            ]
        )
    return table(
        ("task", "teacher", "student", "labels", "pool", "methods", "of", "difference, 95% interval", "p (Holm)"), rows
    )


def choices_table(choices: Sequence[Choices]) -> str:
    """Values of each setting and in how many cells each was chosen; empty where there was nothing to choose."""
    names = [name for name in SEARCHED if any(name in c.chosen for c in choices)]
    rows = [
        [c.student, c.method, _pool(c.pool), str(c.cells), *(counted(c.chosen.get(name, {})) for name in names)]
        for c in choices
    ]
    return table(("student", "method", "pool", "cells", *(name.replace("_", " ") for name in names)), rows)


def counted(values: Mapping[str, int]) -> str:
    """Each value with its number of cells."""
    return ", ".join(f"{value} ({n})" for value, n in values.items())


def shares_table(shares: Sequence[Share]) -> str:
    """Each statement by metric and budget."""
    rows = [
        [s.what, "log-loss" if s.metric == "nll" else s.metric, str(s.budget or "all"), f"{s.held} of {s.cells}"]
        for s in shares
    ]
    return table(("what", "by", "labels", "cells"), rows)


def _verdicts_table(summary: Summary) -> str:
    rows = [
        [
            v.task,
            v.teacher,
            v.student,
            str(v.budget),
            _pool(v.pool),
            ", ".join(f"{name} ({n})" for name, n in v.verdicts.items()),
            ", ".join(f"{name} ({n})" for name, n in v.winners.items()),
            f"{v.held} of {v.seeds}",
        ]
        for v in summary.verdicts
    ]
    return table(("task", "teacher", "student", "labels", "pool", "the gate said", "won by log-loss", "held"), rows)
