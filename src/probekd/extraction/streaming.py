"""Shards of a teacher that is streamed: read together, depth by depth, and cut apart at the end."""

from __future__ import annotations

import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from probekd.extraction import shards
from probekd.files import replacing
from probekd.progress import Progress
from probekd.teacher.extract import Collector
from probekd.teacher.packing import branches_of
from probekd.teacher.passes import BatchVisit, plan_work
from probekd.teacher.streamed import stream_work

if TYPE_CHECKING:
    from probekd.extraction.job import Job
    from probekd.teacher.load import Teacher

# What decides how many rows share one reading of the weights: kept states of one depth that are held in memory; states
# between two blocks, which lie on the disk; and tokens, whose numbers are held in memory and keep a block busy for long.
DEPTH_BYTES = 2**30
BETWEEN_BYTES = 2**33
PASS_TOKENS = 2**21


def passes(job: Job) -> list[list[int]]:
    """All shards in runs that are read in one pass over the weights; the same however many of them are there."""
    tokens_at_once = min(PASS_TOKENS, BETWEEN_BYTES // _token_bytes(job.teacher))
    found: list[list[int]] = []
    rows = tokens = 0
    for number, shard in enumerate(job.shards):
        own = job.tokens_of([number])
        rows, tokens = rows + len(shard), tokens + own
        if not found or rows * job.row_bytes > DEPTH_BYTES or tokens > tokens_at_once:
            found.append([])
            rows, tokens = len(shard), own
        found[-1].append(number)
    return found


def count_passes(teacher: Teacher, tokens: int) -> int:
    """How often the weights are read for a store of so many tokens."""
    return -(-tokens // min(PASS_TOKENS, BETWEEN_BYTES // _token_bytes(teacher)))


def bytes_between(teacher: Teacher, tokens: int) -> int:
    """Bytes on the disk while a store of so many tokens is streamed, at most: what enters a block, and what leaves it."""
    return min(BETWEEN_BYTES, min(PASS_TOKENS, tokens) * _token_bytes(teacher))


def _token_bytes(teacher: Teacher) -> int:
    return 2 * teacher.width * teacher.dtype.itemsize


def stream(job: Job, numbers: list[int], missing: list[int], plan: Mapping[str, Any], progress: Progress) -> None:
    """Compute the shards of one pass; what a depth gave is kept, so that a killed pass goes on with the next.

    Args:
        job: What is read.
        numbers: Shards of the pass.
        missing: Those of them that are not there; the others were cut before a kill.
        plan: How the rows are computed.
        progress: Told the missing shards' tokens, a share for each depth.
    """
    prompts = job.survey.encode(row for n in numbers for row in job.shards[n])
    wanted = job.wanted(prompts)
    deepest = max(wanted.visited(job.teacher))
    tokens = job.tokens_of(missing)
    scratch = job.directory / f".pass-{numbers[0]:05}-{numbers[-1]:05}"
    scratch.mkdir(exist_ok=True)

    @contextmanager
    def read(depth: int) -> Iterator[BatchVisit]:
        kept = (depth,) if depth in wanted.depths else ()
        last = depth == job.teacher.depths
        here = replace(
            wanted,
            depths=kept,
            label_tokens=wanted.label_tokens if last else None,
            likelihood=wanted.likelihood and last,
        )
        collector = Collector(job.teacher, prompts, here)
        yield collector.visit
        if kept or here.outputs:
            reading = collector.reading()
            described = shards.columns(prompts, reading, job.survey.orders)
            _write_depth(_depth(scratch, depth), reading.states if kept else {}, described)
        progress.advance(tokens * (depth + 1) // (deepest + 1) - tokens * depth // (deepest + 1))

    work = plan_work(job.teacher, [branches_of(i, p) for i, p in enumerate(prompts)], packed=plan["packed"])
    stream_work(job.teacher, work, deepest, read, scratch, plan["batch_tokens"])
    _cut(job, numbers, missing, scratch, deepest)
    shutil.rmtree(scratch)


def _depth(scratch: Path, depth: int) -> Path:
    return scratch / f"{depth:05}.safetensors"


def _write_depth(path: Path, states: Mapping[Any, torch.Tensor], described: Mapping[str, Any]) -> None:
    with replacing(path) as temporary:
        shards.write_tensors(temporary, states, described)


def _cut(job: Job, numbers: list[int], missing: list[int], scratch: Path, deepest: int) -> None:
    """Write each missing shard from what the depths gave of its rows."""
    from safetensors import safe_open

    columns = shards.header(_depth(scratch, deepest))
    start = 0
    for number in numbers:
        rows = slice(start, start + len(job.shards[number]))
        start = rows.stop
        if number not in missing:
            continue
        states: dict[Any, list[torch.Tensor]] = {p: [] for p in job.positions}
        for depth in job.depths:
            with safe_open(_depth(scratch, depth), framework="pt") as tensors:
                for position in job.positions:
                    states[position].append(tensors.get_slice(position)[:, rows].clone())
        shards.write(
            job.shard(number),
            {p: torch.cat(parts) for p, parts in states.items()},
            {name: values[rows] for name, values in columns.items()},
        )
