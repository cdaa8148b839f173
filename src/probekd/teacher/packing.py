"""Which tokens are computed: rows as trees whose shared beginnings are there once. Pure functions over tokens."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from probekd.prompts import Prompt, TokenSequence

Tokens = Sequence[int]

# A beginning is computed apart from its rows when this many tokens are saved by it: the small batch that it takes
# costs about as much as these would.
LEAST_SAVED = 512


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

    @property
    def unread(self) -> int:
        """Tokens that all sequences begin with before the first whose state is read: what other rows may share."""
        return min(self.skipped + self.trunk, *(first_read(b.sequence) for b in self.branches))

    def continuing(self, shared: int) -> Tree:
        """The tree when its first ``shared`` tokens, at most ``unread``, are computed elsewhere."""
        return replace(self, skipped=shared, trunk=self.skipped + self.trunk - shared)


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


@dataclass(frozen=True, kw_only=True, slots=True)
class _Segment:
    """Neighbours from ``start`` to ``stop`` in sorted order, the groups that serve them best, and what these save.

    A group is its start, its stop and the length of its prefix.
    """

    start: int
    stop: int
    saved: int
    groups: tuple[tuple[int, int, int], ...]


def grouped(trees: Sequence[Tree]) -> list[Group]:
    """Rows grouped by the tokens that they begin with, where that saves enough; the rest are one group without.

    In sorted order rows that begin alike are neighbours. Segments of neighbours are joined, those that share most first;
    a joined segment is one group, or what its two parts were, whichever saves more. So rows that share worked examples
    are not kept from each other by the one that shares a word with them, nor by how long their questions are.
    """
    ordered = sorted(trees, key=lambda t: (t.branches[0].sequence.tokens, t.branches[0].row))
    tokens = [t.branches[0].sequence.tokens for t in ordered]
    shared = [
        min(common_length(tokens[i], tokens[i + 1]), ordered[i].unread, ordered[i + 1].unread)
        for i in range(len(ordered) - 1)
    ]
    segments = [_Segment(start=i, stop=i + 1, saved=0, groups=()) for i in range(len(ordered))]
    starting, ending = dict(enumerate(segments)), {s.stop: s for s in segments}
    for i in sorted(range(len(shared)), key=lambda i: -shared[i]):
        left, right = ending.pop(i + 1), starting.pop(i + 1)
        apart = left.saved + right.saved
        whole = shared[i] * (right.stop - left.start - 1) - LEAST_SAVED
        together = whole >= 0 and whole >= apart
        joined = _Segment(
            start=left.start,
            stop=right.stop,
            saved=whole if together else apart,
            groups=((left.start, right.stop, shared[i]),) if together else (*left.groups, *right.groups),
        )
        starting[joined.start] = ending[joined.stop] = joined
    chosen = starting[0].groups if ordered else ()
    groups = [
        Group(prefix=tokens[a][:length], trees=tuple(t.continuing(length) for t in ordered[a:z]))
        for a, z, length in chosen
    ]
    inside = {i for a, z, _ in chosen for i in range(a, z)}
    alone = tuple(t for i, t in enumerate(ordered) if i not in inside)
    return [*([Group(prefix=(), trees=alone)] if alone else []), *groups]
