"""Which tokens are computed: rows as trees whose shared beginnings are there once. Pure functions over tokens."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from probekd.prompts import Prompt, TokenSequence

Tokens = Sequence[int]

# A beginning is computed apart from its rows when this many tokens are saved by it: the small batch that it takes
# costs about as much as these would.
LEAST_SAVED = 512
# A row joins the rows before it when it shares this part of their beginning, else it opens a group of its own.
LEAST_KEPT = 0.8


@dataclass(frozen=True, kw_only=True, slots=True)
class Branch:
    """One sequence and where its readings go.

    Attributes:
        row: Row of the reading.
        turn: Number of its option order.
        first: Index of its first option.
        sequence: Tokens, and the spans that are read.
    """

    row: int
    turn: int
    first: int
    sequence: TokenSequence


@dataclass(frozen=True, kw_only=True, slots=True)
class Tree:
    """The sequences of one row: a trunk that all of them begin with, and what each adds to it.

    Attributes:
        skipped: Tokens before the trunk, which its group shares and computes once.
        trunk: Length of the trunk.
        branches: The sequences.
    """

    skipped: int
    trunk: int
    branches: tuple[Branch, ...]

    @property
    def size(self) -> int:
        """Tokens that are computed."""
        start = self.skipped + self.trunk
        return self.trunk + sum(len(b.sequence.tokens) - start for b in self.branches)


@dataclass(frozen=True, kw_only=True, slots=True)
class Group:
    """Rows that begin alike.

    Attributes:
        prefix: What they begin with, computed once; may be empty.
        trees: The rows.
    """

    prefix: tuple[int, ...]
    trees: tuple[Tree, ...]

    @property
    def size(self) -> int:
        """Tokens that are computed."""
        return len(self.prefix) + sum(t.size for t in self.trees)


def branches_of(row: int, prompt: Prompt) -> tuple[Branch, ...]:
    """A ``listed`` prompt has one sequence for each order, a ``branched`` one for each option."""
    listed = prompt.layout == "listed"
    return tuple(
        Branch(row=row, turn=i if listed else 0, first=0 if listed else i, sequence=s)
        for i, s in enumerate(prompt.sequences)
    )


def common_length(a: Tokens, b: Tokens) -> int:
    """How many tokens two sequences begin with in common."""
    shorter = min(len(a), len(b))
    if a[:shorter] == b[:shorter]:
        return shorter
    return next(i for i in range(shorter) if a[i] != b[i])


def first_read(sequence: TokenSequence) -> int:
    """Index of the first token whose state something reads; what comes before it may be shared with other rows."""
    scored = [sequence.scored[0] - 1] if sequence.scored[1] else []
    return min(sequence.answer, *scored, *(start for start, _ in sequence.options), len(sequence.tokens) - 1)


def tree_of(branches: Sequence[Branch]) -> Tree:
    """The tree of one row's sequences."""
    tokens = [b.sequence.tokens for b in branches]
    return Tree(skipped=0, trunk=min(common_length(tokens[0], t) for t in tokens), branches=tuple(branches))


def grouped(trees: Sequence[Tree]) -> list[Group]:
    """Rows grouped by the tokens that they begin with, where that saves enough; the rest are one group without."""
    ordered = sorted(trees, key=lambda t: (t.branches[0].sequence.tokens, t.branches[0].row))
    groups: list[Group] = []
    alone: list[Tree] = []
    members: list[Tree] = []
    shared = 0

    def close() -> None:
        if shared * (len(members) - 1) >= LEAST_SAVED:
            prefix = members[0].branches[0].sequence.tokens[:shared]
            rows = (Tree(skipped=shared, trunk=t.trunk - shared, branches=t.branches) for t in members)
            groups.append(Group(prefix=prefix, trees=tuple(rows)))
        else:
            alone.extend(members)

    for tree in ordered:
        most = min(tree.trunk, *(first_read(b.sequence) for b in tree.branches))
        if members:
            kept = min(
                shared, most, common_length(members[0].branches[0].sequence.tokens, tree.branches[0].sequence.tokens)
            )
            if kept and kept >= LEAST_KEPT * shared:
                members.append(tree)
                shared = kept
                continue
            close()
        members, shared = [tree], most
    if members:
        close()
    return [*([Group(prefix=(), trees=tuple(alone))] if alone else []), *groups]
