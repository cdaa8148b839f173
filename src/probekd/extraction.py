"""extract: run the teacher over a task's rows and fill state stores, shard by shard, so that a killed run goes on."""

from __future__ import annotations

import json
import os
import platform
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from importlib.metadata import version
from itertools import cycle, islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from probekd.config import Layout, Position, TeacherConfig
from probekd.errors import DataError
from probekd.files import file_digest, replacing, write_json
from probekd.progress import Progress, Silent, working
from probekd.prompts import Prompt, PromptEncoder, layouts_of, orders_read
from probekd.states import FORMAT, States, StateStore
from probekd.tasks.base import Task, content_hash
from probekd.teacher.batching import shard_slices
from probekd.teacher.load import Teacher, cache_dir, load_teacher

if TYPE_CHECKING:
    from torch import Tensor

SHARD_BYTES = 64 * 2**20
ROWS_AT_ONCE = 4096  # bounds a shard of cheap rows, so that a killed run loses little


def default_positions(task: Task, layout: Layout) -> tuple[Position, ...]:
    """Positions that mean something: with a fixed label set the ``listed`` labels come before the text and say nothing."""
    if layout == "branched":
        return ("option_end", "option_mean")
    return ("answer", "option_end", "option_mean") if task.kind == "multiple_choice" else ("answer",)


def encode_task(
    teacher: Teacher, task: Task, *, splits: Sequence[str] = (), layouts: Sequence[Layout] | None = None
) -> tuple[Task, dict[tuple[str, Layout], list[Prompt]]]:
    """Encode rows in every layout and apply ``on_long``; returns the task without dropped rows, and the prompts.

    Raises:
        DataError: a prompt longer than the teacher's context, with ``on_long: error``.
    """
    encoder = PromptEncoder(teacher.tokenizer, task, encoder=teacher.encoder)
    names = splits or tuple(name for name in task.splits if name != "dev")
    prompts: dict[tuple[str, Layout], list[Prompt]] = {}
    dropped: set[str] = set()
    for split in names:
        for layout in layouts or layouts_of(task.kind, task.prompt):
            encoded = [encoder.encode(e, layout) for e in task.rows(split)]
            for prompt in encoded:
                longest = max(len(s.tokens) for s in prompt.sequences)
                if longest > teacher.max_length and teacher.config.on_long == "error":
                    raise DataError(
                        f"task {task.name}, split {split}, row {prompt.id!r}: its {layout} prompt has {longest} tokens, the teacher's "
                        f"context is {teacher.max_length}; shorten it, use fewer shots, or set teacher.on_long: drop"
                    )
                if longest > teacher.max_length:
                    dropped.add(prompt.id)
            prompts[split, layout] = encoded
    if dropped:
        kept = {name: tuple(e for e in rows if e.id not in dropped) for name, rows in task.splits.items()}
        note = f"{len(dropped)} rows were dropped: their prompts are longer than the teacher's context of {teacher.max_length} tokens"
        task = replace(task, splits=kept, notes=(*task.notes, note))
        prompts = {key: [p for p in rows if p.id not in dropped] for key, rows in prompts.items()}
    return task, prompts


def extract(
    teacher: Teacher | TeacherConfig | str | Path,
    task: Task,
    *,
    splits: Sequence[str] = (),
    layouts: Sequence[Layout] | None = None,
    positions: Sequence[Position] | None = None,
    depths: Sequence[int] | None = None,
    cache: Path | None = None,
    progress: Progress | None = None,
) -> States:
    """Read the teacher's states for a task's rows, from the cache where they are there already.

    Args:
        teacher: A loaded teacher, its config, or the name of a model.
        task: The rows.
        splits: Splits to read; none named = all but ``dev``.
        layouts: Prompt layouts; None = those of the task's prompt.
        positions: Positions to keep; None = every one that the layout has for this kind of task.
        depths: Depths to keep; None = 0..L.
        cache: Directory of the states cache; None = the variable PROBEKD_CACHE, else ~/.cache/probekd.
        progress: Told tokens as they are done.

    Raises:
        DataError, ModelError, StoreError: see the parts; what was finished stays, and the next call goes on from there.
    """
    if not isinstance(teacher, Teacher):
        teacher = load_teacher(teacher)
    progress = progress or Silent()
    kept_depths = tuple(sorted(set(depths))) if depths is not None else tuple(range(teacher.depths + 1))
    outside = [depth for depth in kept_depths if not 0 <= depth <= teacher.depths]
    if outside:
        raise DataError(
            f"depth {outside[0]} asked for, but {teacher.name} has {teacher.depths} blocks (depths 0 to {teacher.depths})"
        )
    task, prompts = encode_task(teacher, task, splits=splits, layouts=layouts)
    jobs = []
    for (split, layout), rows in prompts.items():
        kept = tuple(p for p in default_positions(task, layout) if positions is None or p in positions)
        if rows and kept:
            jobs.append(
                _Job.plan(teacher, task, split, layout, rows, kept, kept_depths, (cache or cache_dir()) / "states")
            )
    if not jobs:
        raise DataError(
            f"task {task.name}: nothing to extract: no rows, or none of the positions {list(positions or ())} in these layouts"
        )
    pending = [job for job in jobs if not job.finished]
    with working(progress, "reading the teacher", sum(j.tokens for j in jobs), "tokens"):
        progress.advance(sum(j.tokens for j in jobs if j.finished))
        if pending:
            pending[0].check()
        for job in pending:
            job.run(progress)
    return States(tuple(StateStore.open(job.directory) for job in jobs))


@dataclass(frozen=True, kw_only=True)
class _Job:
    """One store to fill: rows in a fixed order, cut into shards; each row is read in up to ``orders`` option orders."""

    teacher: Teacher
    task: Task
    split: str
    layout: Layout
    prompts: tuple[Prompt, ...]
    orders: int
    label_tokens: tuple[tuple[int, ...], ...] | None
    positions: tuple[Position, ...]
    depths: tuple[int, ...]
    directory: Path
    versions: Mapping[str, str]

    @classmethod
    def plan(
        cls,
        teacher: Teacher,
        task: Task,
        split: str,
        layout: Layout,
        prompts: Sequence[Prompt],
        positions: tuple[Position, ...],
        depths: tuple[int, ...],
        root: Path,
    ) -> _Job:
        # Longest first, ties by id: shards of similar length, and a key that does not depend on the file's row order.
        ordered = tuple(sorted(prompts, key=lambda p: (-max(len(s.tokens) for s in p.sequences), p.id)))
        tokens = None
        if layout == "listed" and teacher.head_weight is not None:
            encoder = PromptEncoder(teacher.tokenizer, task, encoder=teacher.encoder)
            tokens = _label_tokens(encoder, task, split, ordered)
        versions = {name: version(name) for name in ("torch", "transformers")}
        orders = orders_read(task.kind, layout, task.prompt)
        content = [repr([(s.tokens, s.answer, s.options, s.scored) for s in p.sequences]) for p in ordered]
        # Rows in their own order alone have the key that they had before there were others: stores stay good.
        permuted = [orders, [[s.order for s in p.sequences] for p in ordered]] if orders > 1 else []
        key = content_hash(
            FORMAT,
            teacher.fingerprint,
            teacher.config.dtype,
            teacher.attention,
            layout,
            positions,
            depths,
            versions,
            tokens,
            [p.id for p in ordered],
            content,
            *permuted,
        )
        return cls(
            teacher=teacher,
            task=task,
            split=split,
            layout=layout,
            prompts=ordered,
            orders=orders,
            label_tokens=tokens,
            positions=positions,
            depths=depths,
            directory=root / key[:24],
            versions=versions,
        )

    @property
    def finished(self) -> bool:
        return (self.directory / "manifest.json").is_file()

    @property
    def tokens(self) -> int:
        return sum(p.num_tokens for p in self.prompts)

    @property
    def max_options(self) -> int:
        return max(len(p.option_bytes) for p in self.prompts)

    @property
    def shards(self) -> list[range]:
        # While they are computed, states of every position are held for each order.
        slots = self.orders * sum(1 if p == "answer" else self.max_options for p in self.positions)
        row_bytes = slots * len(self.depths) * self.teacher.width * (4 if self.teacher.config.dtype == "float32" else 2)
        return [r for r in shard_slices(len(self.prompts), max(row_bytes, SHARD_BYTES // ROWS_AT_ONCE), SHARD_BYTES)]

    def check(self) -> None:
        """Check our pass against Transformers' on the shortest row."""
        from probekd.teacher.extract import check_pass

        check_pass(self.teacher, self.prompts[-1], self.label_tokens[-1] if self.label_tokens else None)

    def run(self, progress: Progress) -> None:
        """Compute the shards that are not there yet, then the index, then the manifest."""
        began = time.monotonic()
        self.directory.mkdir(parents=True, exist_ok=True)
        for leftover in self.directory.glob(".*.tmp"):
            leftover.unlink(missing_ok=True)
        for number, rows in enumerate(self.shards):
            if self._shard(number).is_file():
                progress.advance(sum(self.prompts[r].num_tokens for r in rows))
            else:
                self._compute(number, rows, progress)
        self._write_index()
        self._write_manifest(time.monotonic() - began)

    def _shard(self, number: int) -> Path:
        return self.directory / f"shard-{number:05}.safetensors"

    def _outputs(self, number: int) -> dict[str, list[Any]]:
        """What a shard's rows said in words; kept in the shard's header, so that one is never there without the other."""
        from safetensors import safe_open

        with safe_open(self._shard(number), framework="pt") as tensors:
            return dict(json.loads(tensors.metadata()["outputs"]))

    def _compute(self, number: int, rows: range, progress: Progress) -> None:
        from safetensors.torch import save_file

        from probekd.teacher.extract import read_states

        reading = read_states(
            self.teacher,
            [self.prompts[r] for r in rows],
            positions=self.positions,
            depths=self.depths,
            max_options=self.max_options,
            orders=self.orders,
            label_tokens=None if self.label_tokens is None else [self.label_tokens[r] for r in rows],
            likelihood=self.layout == "branched" and self.teacher.head_weight is not None,
            progress=progress,
        )
        outputs = {"label_logits": reading.label_logits, "option_loglik": reading.option_loglik}
        columns: dict[str, list[Any]] = {
            name: [_own(v, self.prompts[r]) for v, r in zip(values, rows, strict=True)]
            for name, values in outputs.items()
            if values is not None
        }
        columns["id"] = [self.prompts[r].id for r in rows]
        with replacing(self._shard(number)) as temporary:
            tensors: dict[str, Tensor] = {name: tensor.contiguous() for name, tensor in reading.states.items()}
            save_file(tensors, temporary, metadata={"outputs": json.dumps(columns)})
            os.chmod(temporary, 0o644)

    def _write_index(self) -> None:
        parts = [self._outputs(number) for number in range(len(self.shards))]
        outputs = {name: [value for part in parts for value in part[name]] for name in parts[0]}
        described = pa.table(
            {
                "id": [p.id for p in self.prompts],
                "split": [self.split] * len(self.prompts),
                "num_tokens": [p.num_tokens for p in self.prompts],
                "tokens_sha256": [content_hash(*(s.tokens for s in p.sequences)) for p in self.prompts],
                "num_options": [len(p.option_bytes) for p in self.prompts],
                "option_tokens": [[s.scored[1] - s.scored[0] for s in p.sequences] for p in self.prompts],
                "option_bytes": [list(p.option_bytes) for p in self.prompts],
            }
        )
        assert outputs.pop("id") == described["id"].to_pylist(), "outputs are not in the rows' order"
        if self.orders > 1:
            outputs["orders"] = [_orders_of(p, self.orders) for p in self.prompts]
        for name, values in outputs.items():
            described = described.append_column(name, pa.array(values))
        with replacing(self.directory / "index.parquet") as temporary:
            pq.write_table(described, temporary)

    def _write_manifest(self, seconds: float) -> None:
        readouts = (
            {"listed": ["label_logits"], "branched": ["option_loglik"]}[self.layout]
            if self.teacher.head_weight is not None
            else []
        )
        paths = [self._shard(number) for number in range(len(self.shards))]
        shards = [
            {"file": path.name, "rows": len(rows), "bytes": path.stat().st_size, "sha256": file_digest(path)}
            for path, rows in zip(paths, self.shards, strict=True)
        ]
        index = self.directory / "index.parquet"
        teacher = self.teacher
        write_json(
            self.directory / "manifest.json",
            {
                "format": FORMAT,
                "key": self.directory.name,
                "task": self.task.name,
                "split": self.split,
                "layout": self.layout,
                "positions": self.positions,
                "depths": self.depths,
                "convention": "depth k is the residual stream after k blocks, before the final norm; 0 is the embeddings",
                "teacher": {
                    "name": teacher.name,
                    "fingerprint": teacher.fingerprint,
                    "blocks": teacher.depths,
                    "width": teacher.width,
                    "dtype": teacher.config.dtype,
                    "attention": teacher.attention,
                },
                **({"permutations": self.orders} if self.orders > 1 else {}),
                "rows": len(self.prompts),
                "max_options": self.max_options,
                "tokens": self.tokens,
                "seconds": round(seconds, 3),
                "outputs": readouts,
                "versions": {**self.versions, "python": platform.python_version()},
                "shards": shards,
                "index": {"file": index.name, "bytes": index.stat().st_size, "sha256": file_digest(index)},
            },
        )


def _orders_of(prompt: Prompt, orders: int) -> list[list[int]]:
    """The order of each of the row's ``answer`` states: its own orders, repeated in turn as the states are."""
    return [list(s.order) for s in islice(cycle(prompt.sequences), orders)]


def _own(values: np.ndarray, prompt: Prompt) -> list[float]:
    return [float(v) for v in values[: len(prompt.option_bytes)]]


def _label_tokens(
    encoder: PromptEncoder, task: Task, split: str, prompts: Sequence[Prompt]
) -> tuple[tuple[int, ...], ...]:
    """Label tokens of each row. They depend on the number of options alone, so one row of each kind is tokenised."""
    examples = {e.id: e for e in task.rows(split)}
    known: dict[int, tuple[int, ...]] = {}
    for prompt in prompts:
        count = len(prompt.option_bytes)
        if count not in known:
            known[count] = tuple(encoder.label_tokens(examples[prompt.id]))
    return tuple(known[len(p.option_bytes)] for p in prompts)
