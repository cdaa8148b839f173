"""What a run will take, before it starts: tokens, seconds from a short measured warm-up, bytes on disk."""

from __future__ import annotations

import time
from collections.abc import Sequence
from contextlib import ExitStack
from typing import Any

from probekd.config import Layout, RunConfig
from probekd.errors import DataError
from probekd.extraction import Survey, default_positions, survey_task
from probekd.extraction.streaming import bytes_between, count_passes
from probekd.rundir import RunDirectory
from probekd.stages import Run
from probekd.teacher.load import Teacher, device_of, resolve_model
from probekd.teacher.memory import free_memory, weight_bytes

WARM_UP_ROWS = 24
WARM_UP_BLOCKS = 2


def estimate_run(config: RunConfig) -> dict[str, Any]:
    """Tokens, seconds and bytes of the teacher's passes.

    The labelled rows are read in every layout and kept at every depth; the pool and the held-out rows are read in the
    layouts of the chosen probe and readout and kept at one depth. Which layouts will be chosen is not known yet, so
    their figures assume all of them and are upper bounds. Rows in the cache already are not subtracted, and the
    students' training is not included.

    Raises:
        DataError: every row is dropped, being longer than the teacher's context.
    """
    from probekd.progress import Silent

    run = Run(RunDirectory(config.runs_dir / "estimate"), config, Silent())
    free = free_memory(device_of(config.teacher))
    teacher = run.teacher
    task, surveys = survey_task(teacher, run.drawn, splits=("train", "unlabelled", *run.eval_splits))
    if not surveys:
        raise DataError(
            f"task {task.name}: every row is longer than the teacher's context of {teacher.max_length} tokens and dropped; use "
            "fewer shots, a shorter prompt, or a teacher with a longer context"
        )
    reading = _seconds_of_weights(teacher)
    rates = {layout: _rate(teacher, next(s for s in surveys if s.layout == layout)) for layout in layouts(surveys)}
    splits: dict[str, Any] = {}
    for survey in surveys:
        depths = teacher.depths + 1 if survey.split == "train" else 1
        positions = default_positions(task, survey.layout)
        slots = (
            sum(survey.orders if p == "answer" else survey.max_options for p in positions)
            if survey.split == "train"
            else max(task.max_options, survey.orders)
        )
        entry = splits.setdefault(survey.split, {"rows": 0, "tokens": 0, "computed": 0, "seconds": 0.0, "bytes": 0})
        computed = int(survey.computed.sum()) - survey.shared
        entry["rows"] = len(survey.rows)
        entry["tokens"] += int(survey.tokens.sum())
        entry["computed"] += computed
        entry["seconds"] += computed / rates[survey.layout]
        entry["seconds"] += reading * count_passes(teacher, int(survey.tokens.sum()))
        entry["bytes"] += len(survey.rows) * slots * depths * teacher.width * teacher.dtype.itemsize
    total = {name: sum(s[name] for s in splits.values()) for name in ("tokens", "computed", "seconds", "bytes")}
    rate = total["computed"] / total["seconds"]
    streamed = teacher.weights is not None
    weights = weight_bytes(resolve_model(config.teacher.model, config.teacher.revision), config.teacher.dtype)
    longest = max(int(survey.tokens.sum()) for survey in surveys)
    return {
        **{name: int(total[name]) for name in ("tokens", "computed", "bytes")},
        "tokens_per_second": round(rate, 1),
        "seconds": round(total["seconds"], 1),
        "weight_bytes": weights,
        "memory_bytes": _held_bytes(teacher) if streamed else weights,
        "free_memory_bytes": free,
        "streamed": streamed,
        "between_bytes": bytes_between(teacher, longest) if streamed else 0,
        "splits": splits,
    }


def layouts(surveys: Sequence[Survey]) -> list[Layout]:
    """Layouts of some surveys."""
    return list(dict.fromkeys(s.layout for s in surveys))


def _held_bytes(teacher: Teacher) -> int:
    """What the weights of a streamed teacher take in memory: its largest block, and all that is no block."""
    inside = [sum(p.numel() for p in block.parameters()) for block in teacher.blocks]
    outside = sum(p.numel() for p in teacher.model.parameters()) - sum(inside)
    return int((max(inside) + outside) * teacher.dtype.itemsize)


def _seconds_of_weights(teacher: Teacher) -> float:
    """What it takes to read all blocks of a streamed teacher once; 0 of one in memory."""
    if teacher.weights is None:
        return 0.0
    began = time.monotonic()
    with teacher.weights.loaded(teacher.blocks[0], 0):
        return (time.monotonic() - began) * teacher.depths


def _rate(teacher: Teacher, survey: Survey) -> float:
    """Computed tokens a second, from a short pass over rows of every length.

    Of a streamed teacher the first blocks alone are loaded and run, and stand for the rest.
    """
    from probekd.teacher.check import packable
    from probekd.teacher.extract import Wanted, read_states
    from probekd.teacher.packing import branches_of
    from probekd.teacher.passes import plan_work

    rows = range(0, len(survey.rows), max(1, len(survey.rows) // WARM_UP_ROWS))
    prompts = survey.encode(rows)
    deepest = teacher.depths if teacher.weights is None else min(WARM_UP_BLOCKS, teacher.depths)
    wanted = Wanted(positions=(), depths=(deepest,), max_options=survey.max_options, orders=survey.orders)
    packed = not packable(teacher, prompts)
    # Of few rows another share is saved than of many, so that what these take is counted by itself.
    plan = plan_work(teacher, [branches_of(i, p) for i, p in enumerate(prompts)], packed=packed)
    computed = sum(sum(work.sizes) + (work.prefix.shape[1] if work.prefix else 0) for work in plan)
    with ExitStack() as held:
        if teacher.weights is not None:
            for number, block in enumerate(teacher.blocks[:deepest]):
                held.enter_context(teacher.weights.loaded(block, number))
        began = time.monotonic()
        read_states(teacher, prompts, wanted, packed=packed)
        return deepest / teacher.depths * computed / (time.monotonic() - began)


def print_estimate(found: dict[str, Any]) -> None:
    """A table for people."""
    from rich.console import Console
    from rich.table import Table

    table = Table("split", "rows", "tokens", "computed", "minutes", "MB on disk", box=None, header_style="bold")
    for split, s in found["splits"].items():
        cells = (f"{s['rows']:,}", f"{s['tokens']:,}", f"{s['computed']:,}", f"{s['seconds'] / 60:.1f}")
        table.add_row(split, *cells, f"{s['bytes'] / 1e6:,.1f}")
    console = Console()
    console.print(table)
    minutes, rate = found["seconds"] / 60, found["tokens_per_second"]
    console.print(
        f"at most {found['tokens']:,} teacher tokens, {found['computed']:,} of them computed (shared beginnings once), about "
        f"{minutes:.1f} minutes at {rate:,.0f} a second here, and {found['bytes'] / 1e6:,.1f} MB of states; "
        "training the students comes on top",
        highlight=False,
    )
    held = f"one block at a time, {found['memory_bytes'] / 1e9:.2f} GB" if found["streamed"] else "all at once"
    console.print(
        f"the teacher's weights take {found['weight_bytes'] / 1e9:.2f} GB, of {found['free_memory_bytes'] / 1e9:.2f} GB free: "
        f"they are held {held}",
        highlight=False,
    )
    if found["streamed"]:
        console.print(
            f"between two blocks {found['between_bytes'] / 1e6:,.1f} MB of the disk are used at most", highlight=False
        )
