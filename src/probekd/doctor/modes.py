"""The ways in which we read rows, each of them forced."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from pathlib import Path

from probekd.doctor.sample import Sheet
from probekd.teacher.attention import PrefixKeys
from probekd.teacher.batching import PackedBatch, PaddedBatch
from probekd.teacher.extract import Collector, Reading, Wanted
from probekd.teacher.load import Teacher
from probekd.teacher.packing import Branch, Tree, branches_of, common_length, first_read, tree_of
from probekd.teacher.passes import Budget, Work, plan_work, run_work, split
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
    shared = min(min(common_length(first, t.branches[0].sequence.tokens), _unread(t)) for t in trees)
    if shared:
        return [_continued(teacher, trees, shared)]
    return [_continued(teacher, [t], _unread(t)) for t in trees if _unread(t)]


def _branches(sheet: Sheet) -> list[tuple[Branch, ...]]:
    return [branches_of(number, prompt) for number, prompt in enumerate(sheet.prompts)]


def _unread(tree: Tree) -> int:
    """How many tokens of a row's trunk come before the first that is read."""
    return min(tree.trunk, *(first_read(b.sequence) for b in tree.branches))


def _continued(teacher: Teacher, trees: Sequence[Tree], shared: int) -> Work:
    """Rows that share their first tokens."""
    keys = PrefixKeys(length=shared)
    rest = sorted(
        (Tree(skipped=shared, trunk=t.trunk - shared, branches=t.branches) for t in trees), key=lambda t: -t.size
    )
    return Work(
        items=tuple(rest),
        sizes=tuple(t.size for t in rest),
        padded=False,
        batch=lambda some: PackedBatch.rows(some, teacher.device, keys),
        prefix=PackedBatch.prefix(trees[0].branches[0].sequence.tokens[:shared], teacher.device, keys),
    )


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
