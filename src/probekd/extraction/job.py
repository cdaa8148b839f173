"""One store to fill: which shards it has, who fills it, and what is written last."""

from __future__ import annotations

import contextlib
import hashlib
import logging
import os
import platform
import shutil
import time
from collections.abc import Iterable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from functools import cached_property
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pyarrow.parquet as pq

from probekd.config import Position
from probekd.extraction import shards
from probekd.extraction.survey import Survey
from probekd.files import explained, file_digest, read_json, remove_leftovers, replacing, write_json
from probekd.progress import Progress
from probekd.prompts import Prompt
from probekd.states import FORMAT, StateStore, seal
from probekd.tasks.base import content_hash
from probekd.teacher.batching import shard_slices
from probekd.teacher.load import Teacher
from probekd.teacher.packing import branches_of

if TYPE_CHECKING:
    from filelock import BaseFileLock

    from probekd.teacher.extract import Wanted

logger = logging.getLogger(__name__)

SHARD_BYTES = 64 * 2**20
ROWS_AT_ONCE = (
    256  # bounds a shard of cheap rows: little is lost to a kill, and writing goes on while the next is computed
)


@dataclass(frozen=True, kw_only=True, eq=False)
class Job:
    """Rows in a fixed order, cut into shards; each row is read in up to ``survey.orders`` option orders.

    Attributes:
        teacher: The model.
        survey: The rows.
        task: Name of the task.
        label_tokens: First token of each answer, by number of options; None = label logits are not read.
        likelihood: Whether the likelihood of options is read.
        positions: Positions to keep.
        depths: Depths to keep, ascending.
        directory: Of the store.
        lock: File that the process which fills the store holds.
        versions: Of what computes the states.
    """

    teacher: Teacher
    survey: Survey
    task: str
    label_tokens: Mapping[int, tuple[int, ...]] | None
    likelihood: bool
    positions: tuple[Position, ...]
    depths: tuple[int, ...]
    directory: Path
    lock: Path
    versions: Mapping[str, str]

    @classmethod
    def plan(
        cls,
        teacher: Teacher,
        survey: Survey,
        positions: tuple[Position, ...],
        depths: tuple[int, ...],
        *,
        outputs: bool,
        task: str,
        cache: Path,
    ) -> Job:
        """The job of some rows; the name of its directory says everything that could change a state."""
        spoken = outputs and teacher.head_weight is not None
        label_tokens = _label_tokens(survey) if spoken and survey.layout == "listed" else None
        versions = {name: version(name) for name in ("torch", "transformers")}
        rows = hashlib.sha256()
        for example, digest in zip(survey.rows, survey.digests, strict=True):
            rows.update(content_hash(example.id).encode() + digest.tobytes())
        key = content_hash(
            FORMAT,
            teacher.fingerprint,
            teacher.config.dtype,
            teacher.attention,
            survey.split,  # rows are looked up by it
            survey.layout,
            survey.orders,
            positions,
            depths,
            versions,
            sorted(label_tokens.items()) if label_tokens is not None else spoken,
            rows.hexdigest(),
        )[:24]
        return cls(
            teacher=teacher,
            survey=survey,
            task=task,
            label_tokens=label_tokens,
            likelihood=spoken and survey.layout == "branched",
            positions=positions,
            depths=depths,
            directory=cache / "states" / key,
            lock=cache / "locks" / key,
            versions=versions,
        )

    @property
    def finished(self) -> bool:
        """Whether the store is there, whole."""
        return (self.directory / "manifest.json").is_file()

    @property
    def tokens(self) -> int:
        """Prompt tokens that are asked for, whether or not they are shared."""
        return int(self.survey.tokens.sum())

    @cached_property
    def shards(self) -> list[range]:
        """Rows of each shard."""
        row_bytes = len(self.depths) * self.row_bytes
        return shard_slices(len(self.survey.rows), max(row_bytes, SHARD_BYTES // ROWS_AT_ONCE), SHARD_BYTES)

    @property
    def row_bytes(self) -> int:
        """Bytes of a row's states at one depth while they are computed: every position, for each order."""
        slots = self.survey.orders * sum(1 if p == "answer" else self.survey.max_options for p in self.positions)
        return slots * self.teacher.width * self.teacher.dtype.itemsize

    def tokens_of(self, numbers: Iterable[int]) -> int:
        """Prompt tokens of some shards."""
        return sum(int(self.survey.tokens[list(self.shards[n])].sum()) for n in numbers)

    def shard(self, number: int) -> Path:
        """File of a shard."""
        return self.directory / f"shard-{number:05}.safetensors"

    def wanted(self, prompts: list[Prompt]) -> Wanted:
        """What is read of some rows."""
        from probekd.teacher.extract import Wanted

        tokens = self.label_tokens
        return Wanted(
            positions=self.positions,
            depths=self.depths,
            max_options=self.survey.max_options,
            orders=self.survey.orders,
            label_tokens=None if tokens is None else [tokens[len(p.option_bytes)] for p in prompts],
            likelihood=self.likelihood,
        )

    def check(self) -> None:
        """Check our pass against Transformers' on the shortest row."""
        from probekd.teacher.check import check_pass

        (prompt,) = self.survey.encode([int(self.survey.longest.argmin())])
        check_pass(self.teacher, prompt)

    def use(self) -> StateStore:
        """The finished store, dated, so that ``cache gc`` knows what was used last."""
        self._tidy()
        with contextlib.suppress(PermissionError):  # a cache that others fill may be read all the same
            os.utime(self.directory / "manifest.json")
        return StateStore.open(self.directory)

    def run(self, progress: Progress) -> None:
        """Fill the store, or wait for the process that does."""
        from filelock import FileLock

        with explained(self.lock):
            self.lock.parent.mkdir(parents=True, exist_ok=True)
            self.lock.touch()
        lock = FileLock(self.lock)
        with self._held(lock):
            if self.finished:
                progress.advance(self.tokens)
                return
            began = time.monotonic()
            self.directory.mkdir(parents=True, exist_ok=True)
            remove_leftovers(self.directory)
            plan = self._plan()
            pending = [n for n in range(len(self.shards)) if not shards.is_whole(self.shard(n))]
            progress.advance(self.tokens - self.tokens_of(pending))
            if self.teacher.weights is not None:
                self._stream(pending, plan, progress)
            else:
                self._read(pending, plan, progress)
            self._finish(plan, time.monotonic() - began)

    @contextlib.contextmanager
    def _held(self, lock: BaseFileLock) -> Iterator[None]:
        """Hold the store alone; who has to wait for another process is told."""
        from filelock import Timeout

        try:
            lock.acquire(timeout=0)
        except Timeout:
            logger.warning(
                "%s, split %s, %s: another process reads these rows; waiting for it",
                self.task,
                self.survey.split,
                self.survey.layout,
            )
            lock.acquire()
        try:
            yield
        finally:
            lock.release()

    def _plan(self) -> dict[str, Any]:
        """How the rows are computed: decided once and kept, so that a killed extraction goes on with the same batches."""
        from probekd.teacher.check import packable, paddable

        path = self.directory / ".plan.json"
        if path.is_file():
            return dict(read_json(path))
        ends = sorted({int(self.survey.longest.argmax()), int(self.survey.longest.argmin())})
        prompts = self.survey.encode(ends)
        reason = packable(self.teacher, prompts)
        apart = paddable(self.teacher, prompts) if reason else ""
        plan = {
            "packed": not reason,
            "reason": f"{reason}; one sequence at a time, since {apart}" if apart else reason,
            "batch_tokens": 1 if apart else self._budget(packed=not reason),
        }
        if reason:
            logger.warning(
                "%s, split %s, %s: sequences are read apart, in padded batches, and nothing they share is computed once: %s",
                self.task,
                self.survey.split,
                self.survey.layout,
                plan["reason"],
            )
        write_json(path, plan)
        return plan

    def _budget(self, *, packed: bool) -> int:
        """Tokens a batch: the config's, or what was measured, once for a teacher and layout on this machine."""
        import torch

        from probekd.teacher.passes import STREAMED_BUDGET, measure_budget, plan_work

        teacher = self.teacher
        if teacher.config.batch_tokens is not None:
            return teacher.config.batch_tokens
        if teacher.weights is not None:
            return STREAMED_BUDGET
        memo = self.lock.parent.parent / "budgets.json"
        key = content_hash(
            teacher.fingerprint,
            teacher.config.dtype,
            teacher.device,
            torch.get_num_threads(),
            self.survey.layout,
            packed,
        )
        known: dict[str, int] = read_json(memo) if memo.is_file() else {}
        if key not in known:
            rows = [branches_of(i, p) for i, p in enumerate(self.survey.encode(self.shards[0]))]
            known[key] = measure_budget(teacher, plan_work(teacher, rows, packed=packed))
            write_json(memo, known)
        return known[key]

    def _read(self, pending: list[int], plan: Mapping[str, Any], progress: Progress) -> None:
        """Compute shards one by one; the next one's rows are encoded and the last one is written in the meantime."""
        from probekd.teacher.extract import read_states
        from probekd.teacher.passes import Budget

        budget = Budget(plan["batch_tokens"])
        with ThreadPoolExecutor(1) as encoding, ThreadPoolExecutor(1) as writing:
            coming: Future[list[Prompt]] | None = None
            written: Future[None] | None = None
            for place, number in enumerate(pending):
                prompts = coming.result() if coming else self.survey.encode(self.shards[number])
                following = pending[place + 1 : place + 2]
                coming = encoding.submit(self.survey.encode, self.shards[following[0]]) if following else None
                reading = read_states(
                    self.teacher,
                    prompts,
                    self.wanted(prompts),
                    packed=plan["packed"],
                    budget=budget,
                    progress=progress,
                )
                if written:
                    written.result()
                described = shards.columns(prompts, reading, self.survey.orders)
                written = writing.submit(shards.write, self.shard(number), reading.states, described)
            if written:
                written.result()

    def _stream(self, pending: list[int], plan: Mapping[str, Any], progress: Progress) -> None:
        """Compute shards together, each block's weights read once for all of them."""
        from probekd.extraction.streaming import passes, stream

        for numbers in passes(self):
            if missing := [n for n in numbers if n in pending]:
                stream(self, numbers, missing, plan, progress)

    def _finish(self, plan: Mapping[str, Any], seconds: float) -> None:
        """Write the index, and then the manifest, which makes the store whole."""
        index = self.directory / "index.parquet"
        with replacing(index) as temporary:
            writer: pq.ParquetWriter | None = None
            for number in range(len(self.shards)):
                table = shards.described(self.shard(number), self.survey.split)
                writer = writer or pq.ParquetWriter(temporary, table.schema)
                writer.write_table(table)
            assert writer is not None
            writer.close()
        files = [
            {
                "file": self.shard(n).name,
                "rows": len(rows),
                "bytes": self.shard(n).stat().st_size,
                "sha256": shards.digest(self.shard(n)),
            }
            for n, rows in enumerate(self.shards)
        ]
        spoken = {"listed": self.label_tokens is not None, "branched": self.likelihood}[self.survey.layout]
        teacher = self.teacher
        manifest = {
            "format": FORMAT,
            "key": self.directory.name,
            "task": self.task,
            "split": self.survey.split,
            "layout": self.survey.layout,
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
            "pass": {**plan, "memory": "whole" if teacher.weights is None else "streamed"},
            **({"permutations": self.survey.orders} if self.survey.orders > 1 else {}),
            "rows": len(self.survey.rows),
            "max_options": self.survey.max_options,
            "tokens": self.tokens,
            "seconds": round(seconds, 3),
            "outputs": [{"listed": "label_logits", "branched": "option_loglik"}[self.survey.layout]] if spoken else [],
            "versions": {**self.versions, "python": platform.python_version()},
            "shards": files,
            "index": {"file": index.name, "bytes": index.stat().st_size, "sha256": file_digest(index)},
        }
        write_json(self.directory / "manifest.json", seal(manifest))

    def _tidy(self) -> None:
        """Remove what only an unfinished store needs: a killed process may have left it."""
        (self.directory / ".plan.json").unlink(missing_ok=True)
        for scratch in [self.directory / shards.DIGESTS, *self.directory.glob(".pass-*")]:
            shutil.rmtree(scratch, ignore_errors=True)


def _label_tokens(survey: Survey) -> dict[int, tuple[int, ...]]:
    """Label tokens depend on the number of options alone, so one row of each kind is tokenised."""
    first = {len(e.options): e for e in reversed(survey.rows)}
    return {count: tuple(survey.encoder.label_tokens(first[count])) for count in sorted(first)}
