"""The ways in which we read rows, each of them forced."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from pathlib import Path

from probekd.doctor.sample import Sheet
from probekd.teacher.batching import PaddedBatch
from probekd.teacher.extract import Collector, Reading, Wanted
from probekd.teacher.load import Teacher
from probekd.teacher.packing import Branch, Group, branches_of, common_length, tree_of
from probekd.teacher.passes import Budget, Work, group_work, plan_work, run_work, split
from probekd.teacher.streamed import stream_work

Plan = Callable[[Teacher, Sheet], list[Work]]
# Enough for a batch of several rows, so that there is something to pad and to pack.
BATCH_TOKENS = 4096


def padded(teacher: Teacher, sheet: Sheet) -> list[Work]:
    """Every sequence by itself, padded to the longest of its batch."""
    return plan_work(teacher, _branches(sheet), packed=False)


def packed(teacher: Teacher, sheet: Sheet) -> list[Work]:
    """Rows as trees; beginnings that many rows share are computed once where that saves enough."""
    return plan_work(teacher, _branches(sheet), packed=True)


def prefixed(teacher: Teacher, sheet: Sheet) -> list[Work]:
    """Rows that continue a prefix, whatever it saves: what all begin with, or each row what is its own to share."""
    trees = [tree_of(branches) for branches in _branches(sheet)]
    first = trees[0].branches[0].sequence.tokens
    shared = min(min(common_length(first, t.branches[0].sequence.tokens), t.unread) for t in trees)
    groups = [(trees, shared)] if shared else [([t], t.unread) for t in trees if t.unread]
    return [
        group_work(
            teacher,
            Group(prefix=some[0].branches[0].sequence.tokens[:length], trees=tuple(t.continuing(length) for t in some)),
        )
        for some, length in groups
    ]


def _branches(sheet: Sheet) -> list[tuple[Branch, ...]]:
    return [branches_of(number, prompt) for number, prompt in enumerate(sheet.prompts)]


def read_sheet(teacher: Teacher, sheet: Sheet, plan: Plan, depths: Sequence[int]) -> Reading:
    """Read a sheet as a plan says, with the code that a run uses.

    Raises:
        ModelError: a state is not finite.
    """
    spoken = teacher.head_weight is not None
    wanted = Wanted(
        positions=sheet.positions,
        depths=depths,
        max_options=sheet.max_options,
        orders=sheet.orders,
        label_tokens=sheet.labels if spoken else None,
        likelihood=spoken and sheet.layout == "branched",
    )
    collector = Collector(teacher, sheet.prompts, wanted)
    work, visited = plan(teacher, sheet), wanted.visited(teacher)
    if teacher.weights is None:
        run_work(teacher, work, visited, collector.visit, Budget(BATCH_TOKENS))
        return collector.reading()
    with tempfile.TemporaryDirectory() as scratch:
        stream_work(teacher, work, max(visited), lambda _: nullcontext(collector.visit), Path(scratch), BATCH_TOKENS)
    return collector.reading()


def pads_left(teacher: Teacher, sheets: Sequence[Sheet]) -> bool:
    """Whether a padded batch has a sequence at its right end that is shorter than the batch is long."""
    for sheet in sheets:
        for work in padded(teacher, sheet):
            for batch in split(work, BATCH_TOKENS):
                assert isinstance(batch, PaddedBatch)
                rows = batch.inputs(teacher)["input_ids"].tolist()
                for row, member in zip(rows, batch.members, strict=True):
                    tokens = list(member.sequence.tokens)
                    if row[: len(tokens)] != tokens == row[-len(tokens) :]:
                        return True
    return False
