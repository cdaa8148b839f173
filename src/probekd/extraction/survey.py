"""What must be known of every row before the first is read: lengths, what is shared, a digest of all tokens.

Rows are tokenised here and again when their shard's turn comes; in between a few bytes are kept of each, so that a
hundred thousand of them do not fill the memory.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence
from collections.abc import Set as AbstractSet
from dataclasses import dataclass, replace

import numpy as np

from probekd.config import Layout, Position
from probekd.errors import DataError
from probekd.prompts import Prompt, PromptEncoder, layouts_of, orders_read
from probekd.tasks.base import Example, Task
from probekd.teacher.load import Teacher
from probekd.teacher.packing import LEAST_SAVED, branches_of, common_length, tree_of

DIGEST_BYTES = 16


def default_positions(task: Task, layout: Layout) -> tuple[Position, ...]:
    """Positions that mean something: with a fixed label set the ``listed`` labels come before the text and say nothing."""
    if layout == "branched":
        return ("option_end", "option_mean")
    return ("answer", "option_end", "option_mean") if task.kind == "multiple_choice" else ("answer",)


@dataclass(frozen=True, kw_only=True, eq=False)
class Survey:
    """The rows of one split in one layout.

    Attributes:
        split: Name of the split.
        layout: How the rows are shown.
        encoder: Encodes them.
        rows: The rows, in the order in which they are stored: those that share worked examples together, longest
            first, ties by id. It makes shards of rows alike, and does not depend on the order in a file.
        longest: (n,) tokens of each row's longest sequence.
        tokens: (n,) tokens of each row over all its sequences.
        computed: (n,) tokens of each row when what its sequences begin with is computed once.
        shared: Tokens that need not be computed again because the rows of a subject begin with the same instruction or
            worked examples; what single rows share besides is not counted.
        digests: (n, 16) uint8, of everything that the teacher sees of a row and where it is read.
    """

    split: str
    layout: Layout
    encoder: PromptEncoder
    rows: tuple[Example, ...]
    longest: np.ndarray
    tokens: np.ndarray
    computed: np.ndarray
    shared: int
    digests: np.ndarray

    @property
    def max_options(self) -> int:
        """The most options that a row has."""
        return max(len(e.options) for e in self.rows)

    @property
    def orders(self) -> int:
        """m, the most option orders that a row is read in."""
        return orders_read(self.encoder.task.kind, self.layout, self.encoder.task.prompt)

    def encode(self, rows: Iterable[int]) -> list[Prompt]:
        """Prompts of some rows, by number."""
        return [self.encoder.encode(self.rows[r], self.layout) for r in rows]

    def without(self, ids: AbstractSet[str]) -> Survey:
        """The other rows."""
        kept = np.array([e.id not in ids for e in self.rows], dtype=bool)
        return replace(
            self,
            rows=tuple(e for e in self.rows if e.id not in ids),
            **{name: getattr(self, name)[kept] for name in ("longest", "tokens", "computed", "digests")},
        )


def survey_task(
    teacher: Teacher, task: Task, *, splits: Sequence[str] = (), layouts: Sequence[Layout] | None = None
) -> tuple[Task, list[Survey]]:
    """Survey rows in every layout and apply ``on_long``; returns the task without dropped rows, and the surveys.

    Raises:
        DataError: a prompt longer than the teacher's context, with ``on_long: error``.
    """
    encoder = PromptEncoder(teacher.tokenizer, task, encoder=teacher.encoder)
    names = splits or tuple(name for name in task.splits if name != "dev")
    surveys = [
        _survey(encoder, task.rows(split), split, layout)
        for split in names
        for layout in layouts or layouts_of(task.kind, task.prompt)
        if task.rows(split)
    ]
    dropped: set[str] = set()
    for survey in surveys:
        for number in np.flatnonzero(survey.longest > teacher.max_length):
            row, longest = survey.rows[number], int(survey.longest[number])
            if teacher.config.on_long == "error":
                raise DataError(
                    f"task {task.name}, split {survey.split}, row {row.id!r}: its {survey.layout} prompt has {longest} "
                    f"tokens, the teacher's context is {teacher.max_length}; shorten it, use fewer shots, or set teacher.on_long: drop"
                )
            dropped.add(row.id)
    if not dropped:
        return task, surveys
    kept = {name: tuple(e for e in rows if e.id not in dropped) for name, rows in task.splits.items()}
    note = f"{len(dropped)} rows were dropped: their prompts are longer than the teacher's context of {teacher.max_length} tokens"
    surveys = [s.without(dropped) for s in surveys]
    return replace(task, splits=kept, notes=(*task.notes, note)), [s for s in surveys if s.rows]


def _survey(encoder: PromptEncoder, rows: Sequence[Example], split: str, layout: Layout) -> Survey:
    counts = np.zeros((3, len(rows)), dtype=np.int32)
    digests = np.zeros((len(rows), DIGEST_BYTES), dtype=np.uint8)
    beginnings: dict[str, tuple[tuple[int, ...], int]] = {}
    for number, example in enumerate(rows):
        prompt = encoder.encode(example, layout)
        tree = tree_of(branches_of(number, prompt))
        tokens = prompt.sequences[0].tokens
        counts[:, number] = max(len(s.tokens) for s in prompt.sequences), prompt.num_tokens, tree.size
        seen = [(s.tokens, s.answer, s.options, s.scored, s.order) for s in prompt.sequences]
        digests[number] = np.frombuffer(hashlib.sha256(repr(seen).encode()).digest()[:DIGEST_BYTES], dtype=np.uint8)
        before, members = beginnings.get(example.subject, (tokens[: tree.unread], 0))
        beginnings[example.subject] = before[: min(tree.unread, common_length(before, tokens))], members + 1
    alike = bool(encoder.task.prompt.shots or encoder.texts.instruction)
    saved = [len(tokens) * (members - 1) for tokens, members in beginnings.values()] if alike else []
    order = sorted(range(len(rows)), key=lambda r: (rows[r].subject if alike else "", -counts[0, r], rows[r].id))
    return Survey(
        split=split,
        layout=layout,
        encoder=encoder,
        rows=tuple(rows[r] for r in order),
        longest=counts[0, order],
        tokens=counts[1, order],
        computed=counts[2, order],
        shared=sum(s for s in saved if s >= LEAST_SAVED),
        digests=digests[order],
    )
