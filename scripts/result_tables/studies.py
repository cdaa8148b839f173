"""Tables of ``probekd study``: the means, the differences, who keeps level, and what the gate was worth."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from result_tables.markdown import markdown

READERS = ("teacher_output", "probe")
STUDENTS = ("labels", "self-train", "calibrated-logit-kd", "probe-kd", "blend-kd")
RIVALS = ("labels", "self-train", "logit-kd", "debiased-logit-kd", "calibrated-logit-kd")
LEVEL = " is at most a standard error behind the best other method"
AHEAD = " is ahead of every other method"


def means_table(result: dict[str, Any]) -> str:
    """Accuracy and log-loss of the teacher's readers, and of students that learned from the pool too where they can."""
    cells = {}
    for m in result["means"]:
        # Where a method learns from no pool there is one without.
        place = m["task"], m["budget"], m["method"]
        if place not in cells or m["pool"] != "0":
            cells[place] = m
    methods = [m for m in (*READERS, *STUDENTS) if any(name == m for _, _, name in cells)]
    rows = []
    for task, budget in sorted({(task, budget) for task, budget, _ in cells}):
        found = [cells.get((task, budget, m)) for m in methods]
        seeds = max(m["seeds"] for m in found if m)
        rows.append([task, str(budget), str(seeds), *(_scores(m) for m in found)])
    return markdown(("task", "labels", "seeds", *(m.replace("_", " ") for m in methods)), rows)


def _scores(mean: dict[str, Any] | None) -> str:
    return f"{mean['scores']['accuracy'][0]:.3f} / {mean['scores']['nll'][0]:.3f}" if mean else ""


def differences_table(result: dict[str, Any]) -> str:
    """Points of accuracy that probe-kd with the pool is ahead of others; those whose interval excludes zero are bold."""
    return _differences(result, "accuracy")


def losses_table(result: dict[str, Any]) -> str:
    """The same in log-loss, where less is better."""
    return _differences(result, "nll")


def _differences(result: dict[str, Any], metric: str) -> str:
    some = [c for c in result["comparisons"] if (c["a"], c["metric"]) == ("probe-kd", metric) and c["pool"] != "0"]
    found = {(c["task"], c["budget"], c["b"]): c for c in some}
    rivals = [b for b in RIVALS if any(place[2] == b for place in found)]
    scale, digits = (100, 1) if metric == "accuracy" else (1, 3)
    rows = []
    for task, budget in sorted({place[:2] for place in found}):
        rows.append([task, str(budget), *(_interval(found.get((task, budget, b)), scale, digits) for b in rivals)])
    return markdown(("task", "labels", *rivals), rows)


def _interval(comparison: dict[str, Any] | None, scale: int, digits: int) -> str:
    if comparison is None:
        return ""
    low, high = comparison["ci"]
    mark = "**" if low > 0 or high < 0 else ""
    middle = f"{mark}{scale * comparison['difference']:+.{digits}f}{mark}"
    return f"{middle} [{scale * low:+.{digits}f}, {scale * high:+.{digits}f}]"


def shares_table(result: dict[str, Any]) -> str:
    """How often each method keeps level, by log-loss and accuracy."""
    by = {(s["what"], s["metric"], s["budget"]): s for s in result["shares"]}
    budgets = sorted({s["budget"] for s in result["shares"] if s["budget"]})
    methods = [what.removesuffix(LEVEL) for what in dict.fromkeys(w for w, _, _ in by) if what.endswith(LEVEL)]
    rows = []
    for method in methods:
        for what, suffix in (("level", LEVEL), ("ahead", AHEAD)):
            rows.append(
                [
                    method,
                    what,
                    *(_share(by.get((method + suffix, m, b))) for m in ("nll", "accuracy") for b in (None, *budgets)),
                ]
            )
    return _with_budgets(("method", "is"), budgets, rows)


def gate_table(result: dict[str, Any]) -> str:
    """How often the gate's word held."""
    by = {
        (s["what"], s["metric"], s["budget"]): s
        for s in result["shares"]
        if s["what"].startswith(("the gate", "who led"))
    }
    budgets = sorted({s["budget"] for s in result["shares"] if s["budget"]})
    rows = [
        [what, *(_share(by.get((what, m, b))) for m in ("nll", "accuracy") for b in (None, *budgets))]
        for what in dict.fromkeys(w for w, _, _ in by)
    ]
    return _with_budgets(("what",), budgets, rows)


def _with_budgets(first: Sequence[str], budgets: Sequence[int], rows: Sequence[Sequence[str]]) -> str:
    named = ["all", *(f"{b} labels" for b in budgets)]
    return markdown((*first, *(f"{metric}, {name}" for metric in ("log-loss", "accuracy") for name in named)), rows)


def _share(share: dict[str, Any] | None) -> str:
    return f"{share['held']} of {share['cells']}" if share else ""


def verdicts_table(result: dict[str, Any]) -> str:
    """What the gate said and who won, panel by panel."""

    def counts(found: dict[str, int]) -> str:
        return ", ".join(f"{name} {n}" for name, n in sorted(found.items(), key=lambda item: -item[1]))

    rows = [
        [
            v["task"],
            str(v["budget"]),
            "" if v["pool"] == "0" else v["pool"],
            counts(v["verdicts"]),
            counts(v["winners"]),
            f"{v['held']} of {v['seeds']}",
        ]
        for v in result["verdicts"]
    ]
    return markdown(("task", "labels", "pool", "the gate said", "won by log-loss", "held"), rows)
