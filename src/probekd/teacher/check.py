"""Is our pass the model's own? Compared on a few rows, before it is trusted with many."""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from probekd.errors import ModelError, first_line
from probekd.prompts import Prompt
from probekd.teacher.batching import Batch, PaddedBatch
from probekd.teacher.blocks import depth_of_every_kind
from probekd.teacher.extract import not_finite
from probekd.teacher.load import Teacher
from probekd.teacher.packing import Branch, Group, branches_of, common_length, first_read, tree_of
from probekd.teacher.passes import MemoryFullError, Work, does_not_fit, group_work, memory_said, run_batch
from probekd.teacher.streamed import ending_after, stream_work
from probekd.teacher.vocabulary import vocabulary_logits

if TYPE_CHECKING:
    from torch import Tensor

# Relative to a token's state. Rounding differs with the shapes that are multiplied.
TOLERANCE = {"float32": 1e-3, "bfloat16": 5e-2}
PACKED_TOLERANCE = {"float32": 1e-4, "bfloat16": 5e-2}
CHECKED_TOKENS = 128


def check_pass(teacher: Teacher, prompt: Prompt) -> None:
    """Compare our pass on one row with Transformers' own ``output_hidden_states`` and logits, before trusting it.

    One short forward pass buys certainty about the block stack, the depth convention, the norm and the head of an
    architecture that no test has met: of a long row, such as one with worked examples, the beginning does as well. A
    streamed teacher is compared as if it ended after as many blocks as it takes to meet every kind, which are read from
    disk once more.

    Raises:
        ModelError: they differ by more than rounding, or a state is not finite; names what and where. Or the row does not
            fit into memory.
    """
    branch = _beginning(branches_of(0, prompt)[0])
    last = len(teacher.blocks) if teacher.weights is None else _every_kind(teacher)
    ids = torch.tensor([branch.sequence.tokens], device=teacher.device)
    with torch.inference_mode():
        try:
            with memory_said(), nullcontext() if teacher.weights is None else ending_after(teacher, last):
                theirs = teacher.model(input_ids=ids, output_hidden_states=True)
            (seen,) = states_of(teacher, [PaddedBatch([branch])], last)
        except MemoryFullError as error:
            raise does_not_fit(ids.shape[1], error) from None
        except (TypeError, ValueError, RuntimeError, IndexError) as error:
            raise _unsupported(teacher, f"reading a row fails ({type(error).__name__}: {first_line(error)})") from None
        if getattr(theirs, "hidden_states", None) is None:
            raise _unsupported(teacher, "its model does not give its hidden states, so that ours cannot be compared")
        broken = [depth for depth, hidden in seen.items() if not bool(torch.isfinite(hidden).all())]
        if broken:
            raise not_finite(broken[0], f"row {prompt.id!r}")
        end = seen[last]
        if teacher.norm is not None:
            seen[last] = teacher.norm(end)
        for depth in range(last + 1):
            _expect_same(teacher, f"state at depth {depth}", seen[depth], theirs.hidden_states[depth])
        if teacher.head_weight is not None:
            _expect_same(teacher, "logits", vocabulary_logits(teacher, end[:, -1]), theirs.logits[:, -1])


def _beginning(branch: Branch) -> Branch:
    """The same with a text that is cut where it is long, of which nothing is read but its tokens' states."""
    return replace(branch, sequence=replace(branch.sequence, tokens=branch.sequence.tokens[:CHECKED_TOKENS]))


def _expect_same(teacher: Teacher, what: str, ours: Tensor, theirs: Tensor) -> None:
    if ours.shape != theirs.shape:
        raise _unsupported(
            teacher, f"our {what} has the shape {tuple(ours.shape)}, Transformers' own {tuple(theirs.shape)}"
        )
    error = relative_error(ours, theirs)
    tolerance = TOLERANCE[teacher.config.dtype]
    if not error <= tolerance:
        raise _unsupported(
            teacher,
            f"our {what} differs from Transformers' own by {error:.1e} (relative; at most {tolerance:.0e} is rounding)",
        )


def _unsupported(teacher: Teacher, why: str) -> ModelError:
    streamed = "" if teacher.weights is None else " when it is streamed (teacher.memory)"
    return ModelError(
        f"{teacher.name}: {why}; the architecture {type(teacher.body).__name__} is not supported{streamed}"
    )


def packable(teacher: Teacher, prompts: Sequence[Prompt]) -> str:
    """Why a model's rows cannot be packed; empty when they can.

    The shortest and the longest of the rows are read as a group that shares whatever they begin with, and compared with
    each of their sequences read alone, by as many blocks as it takes to meet every kind: all of a kind attend alike.

    Raises:
        ModelError: the rows do not fit into memory.
    """
    if teacher.encoder:
        return "an encoder reads both ways, so nothing can be shared"
    prefix, packed = _packed([branches_of(i, p) for i, p in enumerate(_ends(prompts))], teacher)
    alone = [PaddedBatch([member]) for member in packed.members]
    name = type(teacher.body).__name__
    try:
        (together, *each) = states_of(teacher, [packed, *alone], _every_kind(teacher), first=prefix)
    except MemoryFullError as error:
        raise does_not_fit(packed.shape[1], error) from None
    except Exception as error:
        return f"{name} cannot be packed: {type(error).__name__}: {str(error).partition(chr(10))[0]}"
    for number, (member, theirs) in enumerate(zip(packed.members, each, strict=True)):
        tokens = range(first_read(member.sequence), len(member.sequence.tokens))
        at = torch.tensor([packed.at(number, t) for t in tokens], device=teacher.device)
        for depth, states in theirs.items():
            apart = relative_error(together[depth][0, at], states[0, tokens.start :])
            if not apart <= PACKED_TOLERANCE[teacher.config.dtype]:
                return f"{name} does not attend as it is told: packed states differ by {apart:.1e} at depth {depth}"
    return ""


def paddable(teacher: Teacher, prompts: Sequence[Prompt]) -> str:
    """Why a model's rows cannot be padded to one length and read together; empty when they can.

    Models that choose the scale of their positions by the longest row of a batch (LongRoPE: Phi-3 with 128k tokens) read a
    short row otherwise beside a long one. Compared like ``packable``.

    Raises:
        ModelError: the rows do not fit into memory.
    """
    members = [branches_of(i, p)[0] for i, p in enumerate(_ends(prompts))]
    both = PaddedBatch(members)
    try:
        together, *each = states_of(teacher, [both, *(PaddedBatch([m]) for m in members)], _every_kind(teacher))
    except MemoryFullError as error:
        raise does_not_fit(both.shape[1], error) from None
    for number, theirs in enumerate(each):
        for depth, states in theirs.items():
            apart = relative_error(together[depth][number, : states.shape[1]], states[0])
            if not apart <= PACKED_TOLERANCE[teacher.config.dtype]:
                return f"a row's states differ by {apart:.1e} beside a longer one at depth {depth}"
    return ""


def _ends(prompts: Sequence[Prompt]) -> tuple[Prompt, Prompt]:
    """The shortest and the longest."""
    ends = sorted(prompts, key=lambda p: (max(len(s.tokens) for s in p.sequences), p.id))
    return ends[0], ends[-1]


def _packed(rows: Sequence[Sequence[Branch]], teacher: Teacher) -> tuple[Batch | None, Batch]:
    """The rows as one group, whatever it saves: what they share, and what each has besides."""
    trees = [tree_of(branches) for branches in rows]
    first, last = (t.branches[0].sequence.tokens for t in trees)
    shared = min(common_length(first, last), *(t.unread for t in trees))
    work = group_work(teacher, Group(prefix=first[:shared], trees=tuple(t.continuing(shared) for t in trees)))
    return work.prefix, work.batch(work.items)


def states_of(
    teacher: Teacher, batches: Sequence[Batch], deepest: int, first: Batch | None = None
) -> list[dict[int, Tensor]]:
    """States (rows, columns, d) of some batches by depth, after ``first`` has run.

    Args:
        teacher: The model.
        batches: What is read.
        deepest: Depth that the pass goes to.
        first: Runs before them, and is not read.
    """
    seen: dict[int, dict[int, Tensor]] = {id(batch): {} for batch in batches}

    def keep(depth: int, batch: Batch, states: Tensor) -> None:
        if id(batch) in seen:
            seen[id(batch)][depth] = states.view(*batch.shape, -1).clone()

    order = [*([first] if first else []), *batches]
    if teacher.weights is None:
        for batch in order:
            run_batch(teacher, batch, range(deepest + 1), keep)
    else:
        with tempfile.TemporaryDirectory() as scratch:
            work = [Work(items=(b,), sizes=(1,), padded=False, batch=lambda some: some[0]) for b in order]
            stream_work(teacher, work, deepest, lambda _: nullcontext(keep), Path(scratch), 1)
    return [seen[id(batch)] for batch in batches]


def _every_kind(teacher: Teacher) -> int:
    types = getattr(teacher.body.config.get_text_config(), "layer_types", None) or ()
    return depth_of_every_kind(teacher.blocks, types)


def relative_error(ours: Tensor, theirs: Tensor) -> float:
    """The worst of the differences of states (..., d), each relative to its reference's length.

    Not to the largest number of all: one token's state, often the first one's, may be a thousand times as long as the
    others (Sun et al. 2024, "Massive activations"), and would hide what is wrong with them.
    """
    apart = (ours.float() - theirs.float()).norm(dim=-1)
    return float((apart / theirs.float().norm(dim=-1).clamp_min(1e-30)).max())
