"""One pass over many rows: groups, batches, and what is done when one does not fit into memory."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch

from probekd.errors import ModelError
from probekd.teacher.attention import PrefixKeys
from probekd.teacher.batching import Batch, PackedBatch, PaddedBatch, fitting
from probekd.teacher.hooks import run_body, state_hooks
from probekd.teacher.load import Teacher
from probekd.teacher.packing import Branch, Group, grouped, tree_of

if TYPE_CHECKING:
    from torch import Tensor

# Told a depth, a batch and the batch's states there, (rows * columns, d).
BatchVisit = Callable[[int, Batch, "Tensor"], None]
# Batch sizes whose speed is compared, and how far up they are run for it.
BUDGETS = (1024, 2048, 4096, 8192, 16384)
_TIMED_BLOCKS = 2
# Of a streamed teacher, whose blocks are too dear to load for a measurement.
STREAMED_BUDGET = 4096
# A larger batch holds more memory, and must be faster by this to be taken.
_WORTH = 1.1


class MemoryFullError(Exception):
    """A batch did not fit into memory."""


@dataclass
class Budget:
    """Tokens a batch; halved when a batch does not fit."""

    tokens: int


@dataclass(frozen=True, kw_only=True)
class Work:
    """Items that are computed in batches, largest first.

    Attributes:
        items: Rows of a group, or single sequences.
        sizes: Tokens of each.
        padded: Whether a batch pads its items to the largest.
        batch: Makes a batch of some of the items.
        prefix: What must run before them, or None.
    """

    items: tuple[Any, ...]
    sizes: tuple[int, ...]
    padded: bool
    batch: Callable[[Sequence[Any]], Batch]
    prefix: Batch | None = None


def plan_work(teacher: Teacher, rows: Sequence[Sequence[Branch]], *, packed: bool) -> list[Work]:
    """What is computed for the sequences of each row: packed, a group at a time; or padded, each sequence by itself."""
    if not packed:
        members = sorted((b for branches in rows for b in branches), key=lambda b: -len(b.sequence.tokens))
        sizes = tuple(len(b.sequence.tokens) for b in members)
        return [Work(items=tuple(members), sizes=sizes, padded=True, batch=PaddedBatch)] if members else []
    return [group_work(teacher, group) for group in grouped([tree_of(branches) for branches in rows])]


def group_work(teacher: Teacher, group: Group) -> Work:
    """The work of one group: its prefix, if it has one, and then its rows."""
    keys = PrefixKeys(length=len(group.prefix)) if group.prefix else None
    trees = tuple(sorted(group.trees, key=lambda t: (-t.size, t.branches[0].row)))
    return Work(
        items=trees,
        sizes=tuple(t.size for t in trees),
        padded=False,
        batch=lambda some: PackedBatch.rows(some, teacher.device, keys),
        prefix=PackedBatch.prefix(group.prefix, teacher.device, keys) if keys else None,
    )


def run_batch(teacher: Teacher, batch: Batch, depths: Sequence[int], visit: BatchVisit) -> None:
    """Run one batch up to the deepest of ``depths`` and visit its states there.

    Raises:
        MemoryFullError: it did not fit.
    """

    def flat(depth: int, states: Tensor) -> None:
        visit(depth, batch, states.flatten(0, 1))

    with memory_said(), torch.inference_mode(), state_hooks(teacher, depths, flat, stop=True):
        run_body(teacher, batch)


def run_work(teacher: Teacher, plan: Sequence[Work], depths: Sequence[int], visit: BatchVisit, budget: Budget) -> None:
    """Run rows through a model that is in memory, and visit their states.

    Args:
        teacher: The model.
        plan: See ``plan_work``.
        depths: Depths to visit.
        visit: A batch that did not fit is visited again, in parts.
        budget: Halved when a batch does not fit.

    Raises:
        ModelError: a single row does not fit into memory.
    """
    for work in plan:
        if work.prefix is not None:
            _run_prefix(teacher, work.prefix, [max(depths)])
        _run_halving(work, budget, lambda batch: run_batch(teacher, batch, depths, visit))


def _run_prefix(teacher: Teacher, prefix: Batch, depths: Sequence[int]) -> None:
    """What a group's rows begin with; one that does not fit is a row that does not, since each of them has it all."""
    try:
        run_batch(teacher, prefix, depths, _nothing)
    except MemoryFullError as error:
        raise does_not_fit(prefix.shape[1], error) from None


def does_not_fit(tokens: int, error: Exception) -> ModelError:
    """What is said where the memory is too small for a single row."""
    return ModelError(
        f"one row of {tokens} tokens does not fit into memory ({error}); shorten the prompt, or set teacher.memory: streamed"
    )


def _run_halving(work: Work, budget: Budget, run: Callable[[Batch], None]) -> None:
    done = 0
    while done < len(work.items):
        count = fitting(work.sizes[done:], budget.tokens, padded=work.padded)
        try:
            run(work.batch(work.items[done : done + count]))
        except MemoryFullError as error:
            if count == 1:
                raise does_not_fit(work.sizes[done], error) from None
            budget.tokens = max(1, sum(work.sizes[done : done + count]) // 2)
            continue
        done += count


def split(work: Work, budget: int) -> Iterator[Batch]:
    """The work's batches, none of which is run."""
    done = 0
    while done < len(work.items):
        count = fitting(work.sizes[done:], budget, padded=work.padded)
        yield work.batch(work.items[done : done + count])
        done += count


def measure_budget(teacher: Teacher, plan: Sequence[Work]) -> int:
    """The batch size that runs fastest here, measured on the first blocks with these very rows.

    Larger sizes are tried as long as they are faster by a tenth, and as long as there are rows to fill them.
    """
    work = max(plan, key=lambda w: sum(w.sizes))
    depths = [min(_TIMED_BLOCKS, len(teacher.blocks))]
    if work.prefix is not None:
        _run_prefix(teacher, work.prefix, depths)
    best, fastest = BUDGETS[0], 0.0
    for tokens in BUDGETS:
        if tokens > BUDGETS[0] and tokens > sum(work.sizes):
            break
        batch = work.batch(work.items[: fitting(work.sizes, tokens, padded=work.padded)])
        try:
            seconds = min(_timed(lambda b=batch: run_batch(teacher, b, depths, _nothing)) for _ in range(3))  # type: ignore[misc]
        except MemoryFullError:
            break
        rate = batch.shape[0] * batch.shape[1] / seconds
        if fastest and rate < _WORTH * fastest:
            break
        best, fastest = tokens, rate
    return best


def _timed(run: Callable[[], None]) -> float:
    began = time.perf_counter()
    run()
    return time.perf_counter() - began


def _nothing(depth: int, batch: Batch, states: Tensor) -> None:
    pass


@contextmanager
def memory_said() -> Iterator[None]:
    """Turn PyTorch's ways of saying that memory is full into one.

    Raises:
        MemoryFullError: it is.
    """
    try:
        yield
    except (torch.OutOfMemoryError, MemoryError) as error:
        raise MemoryFullError(str(error).partition("\n")[0]) from None
    except RuntimeError as error:
        # PyTorch's CPU allocator has no error type of its own.
        if "can't allocate memory" not in str(error):
            raise
        raise MemoryFullError(str(error).partition("\n")[0]) from None
