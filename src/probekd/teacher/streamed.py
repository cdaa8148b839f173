"""A teacher larger than memory: one block's weights at a time, over all rows, the states between blocks on disk."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

import torch

from probekd.errors import ModelError
from probekd.files import replacing
from probekd.teacher.batching import Batch
from probekd.teacher.blocks import find_stack
from probekd.teacher.hooks import entering
from probekd.teacher.load import Teacher
from probekd.teacher.passes import BatchVisit, MemoryFullError, Work, run_batch, split

if TYPE_CHECKING:
    from torch import Tensor

# Opens the reading of one depth: what it yields is told the depth, each batch and its states, in order.
ReadDepth = Callable[[int], AbstractContextManager[BatchVisit]]


def stream_work(
    teacher: Teacher, plan: Sequence[Work], deepest: int, read: ReadDepth, scratch: Path, budget: int
) -> None:
    """Run rows through a model whose blocks are loaded one at a time, each once.

    The states that enter a block lie in one file, written whole before the block below is forgotten: a killed pass goes
    on with the block it was at.

    Args:
        teacher: The model; ``teacher.weights`` has its blocks.
        plan: See ``passes.plan_work``; the same in every call that shares ``scratch``.
        deepest: Depth that the pass goes to.
        read: Opened once for each depth, 0 to ``deepest``, that is not finished yet.
        scratch: Directory of the states between blocks; the caller removes it.
        budget: Tokens a batch.

    Raises:
        ModelError: a batch does not fit into memory.
    """
    batches = [batch for work in plan for batch in ([work.prefix] if work.prefix else []) + list(split(work, budget))]
    done = max((int(f.stem) for f in scratch.glob("*.states")), default=-1)
    for depth in range(done + 1, deepest + 1):
        # What was read of a depth is whole before its states say that the depth is done.
        with replacing(_file(scratch, depth)) as temporary, read(depth) as visit, ExitStack() as stack:
            after = stack.enter_context(temporary.open("wb"))
            before = stack.enter_context(_file(scratch, depth - 1).open("rb")) if depth else None
            if depth:
                stack.enter_context(_only(teacher, depth - 1))
            for batch in batches:
                _one(teacher, batch, depth, before, after, visit)
                batch.slim()
        for batch in batches:
            batch.forget()
        if depth:
            _file(scratch, depth - 1).unlink()


def _one(
    teacher: Teacher, batch: Batch, depth: int, before: BinaryIO | None, after: BinaryIO, visit: BatchVisit
) -> None:
    """One batch through one block, or to the first."""

    def keep(_: int, batch: Batch, states: Tensor) -> None:
        if batch.members:
            visit(depth, batch, states)
        after.write(states.to("cpu").contiguous().view(torch.uint8).numpy().data)

    try:
        if before is None:
            run_batch(teacher, batch, [0], keep)
        else:
            with entering(teacher, depth - 1, _load(before, batch, teacher)):
                run_batch(teacher, batch, [depth], keep)
    except MemoryFullError as error:
        raise ModelError(
            f"a batch of {batch.shape[0] * batch.shape[1]} tokens does not fit into memory ({error}); lower teacher.batch_tokens"
        ) from None


def _load(file: BinaryIO, batch: Batch, teacher: Teacher) -> Tensor:
    size = batch.shape[0] * batch.shape[1] * teacher.width * teacher.dtype.itemsize
    states = torch.frombuffer(bytearray(file.read(size)), dtype=teacher.dtype)
    return states.view(*batch.shape, teacher.width).to(teacher.device)


def _file(scratch: Path, depth: int) -> Path:
    return scratch / f"{depth:05}.states"


@contextmanager
def ending_after(teacher: Teacher, count: int) -> Iterator[None]:
    """Have Transformers' own pass end after ``count`` blocks, each in memory while it runs: a reference for ours."""
    assert teacher.weights is not None
    stack = find_stack(teacher.body, len(teacher.blocks), teacher.name)
    config = teacher.body.config.get_text_config()
    layers = config.num_hidden_layers
    handles = []
    with ExitStack() as held:

        def before(number: int) -> Callable[..., None]:
            def hook(block: Any, _: Any) -> None:
                assert teacher.weights is not None
                held.enter_context(teacher.weights.loaded(block, number))

            return hook

        def after(*_: Any) -> None:
            held.close()

        try:
            del stack[count:]
            config.num_hidden_layers = count
            for number, block in enumerate(stack):
                handles.append(block.register_forward_pre_hook(before(number)))
                # Ahead of those that Transformers collects its states with, which need no weights.
                handles.append(block.register_forward_hook(after))
            yield
        finally:
            for handle in handles:
                handle.remove()
            stack.extend(teacher.blocks[count:])
            config.num_hidden_layers = layers


@contextmanager
def _only(teacher: Teacher, number: int) -> Iterator[None]:
    """Have one block (0-based) in memory, and the pass run through those below it as if they were not there."""
    assert teacher.weights is not None
    below = teacher.blocks[:number]

    def through(hidden_states: Any, *_: Any, **__: Any) -> Any:
        # Some models take block(...)[0] and some block(...): of a tuple either gives what the next one can pass on.
        return hidden_states if isinstance(hidden_states, tuple) else (hidden_states,)

    try:
        for block in below:
            block.forward = through
        with teacher.weights.loaded(teacher.blocks[number], number):
            yield
    finally:
        for block in below:
            del block.forward
