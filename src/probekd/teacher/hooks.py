"""Hooks that hand over the residual stream at chosen depths, end the pass there, or begin it further up."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from probekd.teacher.batching import Batch
from probekd.teacher.load import Teacher
from probekd.teacher.memory import keep_freed_memory

if TYPE_CHECKING:
    import torch

Visit = Callable[[int, "torch.Tensor"], None]


class StopPass(BaseException):
    """Ends a forward pass from inside a hook; ``run_body`` catches it. Not an Exception, so that no model can swallow it."""


@contextmanager
def state_hooks(teacher: Teacher, depths: Sequence[int], visit: Visit, *, stop: bool) -> Iterator[None]:
    """Call ``visit(depth, states)`` with states of shape (batch, tokens, d) during each forward pass.

    Depth 0 is what enters the first block; depth k is what leaves block k, before the final norm.

    Args:
        teacher: The model to watch.
        depths: Depths to visit.
        visit: Called in order of depth; must copy what it keeps.
        stop: End the pass after the deepest of ``depths`` by raising StopPass.
    """
    last = max(depths)
    handles = []

    def seen(depth: int, states: Any) -> None:
        if depth in wanted:
            visit(depth, states)
        if stop and depth == last:
            raise StopPass

    def before(_: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        seen(0, args[0] if args else kwargs["hidden_states"])

    def after(depth: int) -> Callable[..., None]:
        def hook(_: Any, __: Any, output: Any) -> None:
            # Blocks returned a tuple before the mid-2025 refactor, a tensor since; output[0] of a tensor is batch row 0.
            states = output[0] if isinstance(output, tuple) else output
            assert states.ndim == 3, f"block {depth} returned states of shape {tuple(states.shape)}"
            seen(depth, states)

        return hook

    wanted = frozenset(depths)
    try:
        if 0 in wanted:
            handles.append(teacher.blocks[0].register_forward_pre_hook(before, with_kwargs=True))
        for depth in sorted(wanted - {0}):
            handles.append(teacher.blocks[depth - 1].register_forward_hook(after(depth)))
        yield
    finally:
        for handle in handles:
            handle.remove()


@contextmanager
def entering(teacher: Teacher, block: int, states: torch.Tensor) -> Iterator[None]:
    """Have the pass enter a block (0-based) with these states, whatever the blocks below made."""

    def replace(_: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[tuple[Any, ...], dict[str, Any]]:
        return ((states, *args[1:]), kwargs) if args else (args, {**kwargs, "hidden_states": states})

    handle = teacher.blocks[block].register_forward_pre_hook(replace, with_kwargs=True)
    try:
        yield
    finally:
        handle.remove()


def run_body(teacher: Teacher, batch: Batch) -> None:
    """One forward pass of a batch, without LM head or KV cache."""
    keep_freed_memory()
    try:
        with batch.attention(teacher):
            teacher.body(**batch.inputs(teacher))
    except StopPass:
        return
