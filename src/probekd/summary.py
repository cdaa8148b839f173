"""What the command line shows of a run, a stage or a task."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml

from probekd.files import read_json
from probekd.prompts import PromptText, layouts_of
from probekd.report.data import DepthScore, read_depths
from probekd.tasks import BUILTIN
from probekd.tasks.base import Task

if TYPE_CHECKING:
    from rich.table import Table

    from probekd.evaluation.harness import HarnessScore

_WHO = {"teacher_output": "teacher's best output readout", "probe": "probe on its hidden states"}
_EXAMPLES = 3
PLOT_LINES = 8


def results_table(split: str, scores: Mapping[str, Mapping[str, Any]], path: Path) -> Table:
    """Accuracy with its interval, NLL and ECE of everyone on one split."""
    from rich.table import Table

    config = yaml.safe_load((path / "config.yaml").read_text(encoding="utf-8"))
    n = next(iter(scores.values()))["n"]
    table = Table(title=f"{split}: {n} rows", title_justify="left", box=None, header_style="bold", title_style="bold")
    table.add_column("who")
    for name in ("accuracy", "95% interval", "NLL", "ECE"):
        table.add_column(name, justify="right")
    for who, s in scores.items():
        method = config["student"]["method"] if who == "student" else who.partition(":")[2]
        name = _WHO.get(
            who, f"student trained by {method}" if method != "labels" else "student trained on labels alone"
        )
        low, high = s["accuracy_ci"]
        table.add_row(name, f"{s['accuracy']:.3f}", f"{low:.3f} to {high:.3f}", f"{s['nll']:.3f}", f"{s['ece']:.3f}")
    return table


def stage_summary(stage: str, path: Path) -> dict[str, Any]:
    """A stage's record, and for ``probe`` and ``evaluate`` what it found."""
    found: dict[str, Any] = {"run": str(path), "stage": stage, **read_json(path / "run.json")["stages"][stage]}
    if stage == "probe":
        found["probe"] = {k: v for k, v in read_json(path / "probes" / "probe.json").items() if k != "ids"}
        found["depths"] = [asdict(row) for row in read_depths(path / "probes" / "depths.csv")]
    if stage == "evaluate":
        found["metrics"] = read_json(path / "metrics.json")
    return found


def print_stage(stage: str, path: Path) -> None:
    """One stage's result for people."""
    from rich.console import Console

    console = Console()
    entry = read_json(path / "run.json")["stages"][stage]
    if stage == "extract":
        console.print(
            f"{entry['tokens']:,} tokens read, {entry['state_bytes'] / 1e6:,.1f} MB of states in {path / 'states'}",
            highlight=False,
        )
    elif stage == "probe":
        _print_probe(console, read_json(path / "probes" / "probe.json"), read_depths(path / "probes" / "depths.csv"))
    elif stage == "evaluate":
        metrics = read_json(path / "metrics.json")
        for split in (s for s in metrics if s not in ("comparisons", "gate")):
            console.print(results_table(split, metrics[split], path))
    else:
        made = {"label": "targets.parquet", "distill": "student", "report": "report.html"}[stage]
        console.print(str(path / made), highlight=False, soft_wrap=True)


def print_harness(found: Mapping[str, HarnessScore]) -> None:
    """What lm-eval says of a student, beside our own score of the same rows."""
    from rich.console import Console
    from rich.markup import escape

    console = Console()
    for split, s in found.items():
        differ = (
            f"they differ on {len(s.differ)}: {escape(', '.join(s.differ[:5]))}"
            if s.differ
            else "the same pick in each"
        )
        console.print(
            f"[bold]{escape(split)}[/] {s.n} rows: lm-eval {s.metric} {s.harness:.4f}, probekd accuracy {s.accuracy:.4f}; {differ}",
            highlight=False,
            soft_wrap=True,
        )


def _print_probe(console: Any, probe: Mapping[str, Any], scores: Sequence[DepthScore]) -> None:
    from rich.text import Text

    reader = probe["reader"]
    console.print(Text("\n".join(depth_plot(scores, reader, probe["depths"]))))
    for one in probe["readers"]:
        depths = one["depths"]
        where = f"depth {depths[0]}" if len(depths) == 1 else f"depths {depths[0]} to {depths[-1]}"
        share = f", weight {one['weight']:.2f}" if len(probe["readers"]) > 1 or probe["words"] else ""
        console.print(
            f"reads {one['layout']} / {one['position']} at {where} of {probe['depths']} "
            f"({one['family']}, l2 {one['l2']:g}{share})",
            highlight=False,
        )
    for name, weight in probe["words"].items():
        console.print(f"hears the teacher's words: {name}, weight {weight:.2f}", highlight=False)
    before, after = (probe["calibrated"][name]["ece"] for name in ("before", "after"))
    console.print(f"calibrated by {probe['calibration']}: ECE {before:.3f} to {after:.3f}", highlight=False)
    for who, s in probe["out_of_fold"].items():
        name = {**_WHO, "student_alone": "student alone (frozen, linear head)"}[who]
        console.print(
            f"  {name:<36} accuracy {s['accuracy']:.3f}  NLL {s['nll']:.3f}  ECE {s['ece']:.3f}", highlight=False
        )
    console.print(
        f"[bold]gate[/] {probe['gate']['verdict']}: {probe['gate']['reason']}", highlight=False, soft_wrap=True
    )
    console.print(f"more labels: {probe['learning_curve']['outlook']}", highlight=False, soft_wrap=True)


def depth_plot(scores: Sequence[DepthScore], reader: Mapping[str, Any], blocks: int) -> list[str]:
    """Lines of a small plot: out-of-fold log-loss by depth where the chosen reader reads, the best strength of each.

    Args:
        scores: Rows of depths.csv.
        reader: The chosen one.
        blocks: Depth of the teacher.
    """
    best: dict[int, float] = {}
    for row in scores:
        if (row.layout, row.position, row.window) == (reader["layout"], reader["position"], 1):
            best[row.depth] = min(best.get(row.depth, float("inf")), row.nll)
    low, high = min(best.values()), max(best.values())
    step = (high - low) / (PLOT_LINES - 1) or 1.0
    # Two columns a depth where the terminal's usual 80 hold them.
    gap = " " if blocks < 35 else ""
    lines = []
    for number in range(PLOT_LINES):
        marks = [
            " " if depth not in best or round((high - best[depth]) / step) != number else _mark(depth, reader)
            for depth in range(blocks + 1)
        ]
        lines.append(f"{high - number * step:7.3f} |{gap.join(marks)}".rstrip())
    every = 5 if gap else 10
    ticks = "".join(f"{depth:<{every * len(' ' + gap)}}" for depth in range(0, blocks + 1, every))
    return [
        f"log-loss by depth, {reader['layout']} / {reader['position']}, out of fold (* = the chosen depth)",
        *lines,
        f"        +{'-' * (len(' ' + gap) * (blocks + 1) - len(gap))}",
        f"         {ticks}".rstrip(),
    ]


def _mark(depth: int, reader: Mapping[str, Any]) -> str:
    return "*" if depth == reader["depth"] else "o"


def task_list() -> list[dict[str, str]]:
    """The built-in tasks."""
    return [{"name": b.name, "kind": b.kind, "description": b.description} for b in BUILTIN.values()]


def print_tasks() -> None:
    """The built-in tasks for people."""
    from rich.console import Console
    from rich.table import Table

    table = Table("task", "kind", "what", box=None, header_style="bold")
    for task in task_list():
        table.add_row(task["name"], task["kind"], task["description"])
    Console().print(table)


def task_summary(task: Task) -> dict[str, Any]:
    """Splits, labels, notes, and three rows as the teacher would see them."""
    texts = PromptText(task)
    rows = [e for e in task.rows("train", "test", "validation")][:_EXAMPLES]
    prompts = [
        {
            "id": e.id,
            "layout": layout,
            "prompt": texts.text(e, layout),
            "gold": None if e.answer is None else texts.said(e, layout),
        }
        for e in rows
        for layout in layouts_of(task.kind, task.prompt)
    ]
    splits = {name: len(rows) for name, rows in task.splits.items()}
    return {
        "name": task.name,
        "kind": task.kind,
        "splits": splits,
        "labels": list(task.labels),
        "notes": list(task.notes),
        "prompts": prompts,
    }


def print_task(task: Task) -> None:
    """One task for people; its text is printed as it is, never as markup."""
    found = task_summary(task)
    print(f"{found['name']} ({found['kind']}): " + ", ".join(f"{n} {split}" for split, n in found["splits"].items()))
    if found["labels"]:
        print("labels: " + ", ".join(found["labels"]))
    for note in found["notes"]:
        print(f"note: {note}")
    for p in found["prompts"]:
        print(f"\n--- {p['id']}, {p['layout']}\n{p['prompt']}")
        print(f"    [gold: {p['gold']}]")
