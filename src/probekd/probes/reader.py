"""Where and how a probe reads."""

from __future__ import annotations

from dataclasses import dataclass

from probekd.config import Family, Layout, Position


def neighbours(held: tuple[int, ...], depth: int, window: int) -> tuple[int, ...]:
    """The ``window`` depths around one, out of those held (ascending), cut at the ends."""
    place = held.index(depth)
    return held[max(0, place - window // 2) : place + window // 2 + 1]


@dataclass(frozen=True, kw_only=True)
class Reader:
    """One readout of hidden states.

    Attributes:
        layout: Prompt layout.
        position: Where the state is read.
        depth: Depth, or the middle of the depths.
        family: Family of probes.
        l2: Strength of the penalty; 0 where the family has none.
        window: Depths whose logits are averaged, as many above ``depth`` as below, cut at the ends.
    """

    layout: Layout
    position: Position
    depth: int
    l2: float
    family: Family = "logistic"
    window: int = 1

    def depths(self, held: tuple[int, ...]) -> tuple[int, ...]:
        """The depths read, out of those held (ascending)."""
        return neighbours(held, self.depth, self.window)


@dataclass(frozen=True, kw_only=True)
class Candidate:
    """A reader and its out-of-fold scores, with its own temperature; the best of many of these is too good to be true."""

    reader: Reader
    accuracy: float
    nll: float
    ece: float
