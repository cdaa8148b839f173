"""What a run will take, before it starts: tokens, seconds from a short measured warm-up, bytes on disk."""

from __future__ import annotations

import time
from typing import Any

from probekd.config import RunConfig
from probekd.extraction import default_positions, encode_task
from probekd.prompts import orders_read
from probekd.rundir import RunDirectory
from probekd.stages import Run

WARM_UP_BATCHES = 2


def estimate_run(config: RunConfig) -> dict[str, Any]:
    """Tokens, seconds and bytes of the teacher's passes.

    The labelled rows are read in every layout and kept at every depth; the pool and the held-out rows are read in the
    layouts of the chosen probe and readout and kept at one depth. Which layouts will be chosen is not known yet, so
    their figures assume all of them and are upper bounds. Rows in the cache already are not subtracted, and the
    students' training is not included.
    """
    from probekd.progress import Silent
    from probekd.teacher.extract import read_states

    run = Run(RunDirectory(config.runs_dir / "estimate"), config, Silent())
    teacher, task = run.teacher, run.drawn
    task, prompts = encode_task(teacher, task, splits=("train", "unlabelled", *run.eval_splits))
    sample = [p for rows in prompts.values() for p in rows][: WARM_UP_BATCHES * 8]
    first = {p.layout: [q for q in sample if q.layout == p.layout] for p in sample}
    began, done = time.monotonic(), 0
    for layout, rows in first.items():
        width = max(len(p.option_bytes) for p in rows)
        read_states(
            teacher,
            rows,
            positions=default_positions(task, layout),
            depths=range(teacher.depths + 1),
            max_options=width,
            orders=orders_read(task.kind, layout, task.prompt),
        )
        done += sum(p.num_tokens for p in rows)
    rate = done / (time.monotonic() - began)
    item = 4 if config.teacher.dtype == "float32" else 2
    splits: dict[str, Any] = {}
    for (split, layout), rows in prompts.items():
        depths = teacher.depths + 1 if split == "train" else 1
        positions = default_positions(task, layout)
        slots = (
            sum(
                orders_read(task.kind, layout, task.prompt) if p == "answer" else max(len(q.option_bytes) for q in rows)
                for p in positions
            )
            if split == "train" and rows
            else max(task.max_options, orders_read(task.kind, layout, task.prompt))
        )
        entry = splits.setdefault(split, {"rows": len(rows), "tokens": 0, "bytes": 0})
        entry["tokens"] += sum(p.num_tokens for p in rows)
        entry["bytes"] += len(rows) * slots * depths * teacher.width * item
    tokens = sum(s["tokens"] for s in splits.values())
    return {
        "tokens": tokens,
        "tokens_per_second": round(rate, 1),
        "seconds": round(tokens / rate, 1),
        "bytes": sum(s["bytes"] for s in splits.values()),
        "splits": splits,
    }


def print_estimate(found: dict[str, Any]) -> None:
    """A table for people."""
    from rich.console import Console
    from rich.table import Table

    table = Table("split", "rows", "tokens", "MB on disk", box=None, header_style="bold")
    for split, s in found["splits"].items():
        table.add_row(split, f"{s['rows']:,}", f"{s['tokens']:,}", f"{s['bytes'] / 1e6:,.1f}")
    console = Console()
    console.print(table)
    minutes, rate = found["seconds"] / 60, found["tokens_per_second"]
    console.print(
        f"at most {found['tokens']:,} teacher tokens, about {minutes:.1f} minutes at {rate:,.0f} tokens/s here, and "
        f"{found['bytes'] / 1e6:,.1f} MB of states; training the students comes on top",
        highlight=False,
    )
