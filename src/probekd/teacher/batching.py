"""Batches: sequences that are computed together, packed or padded, and where their tokens lie in what comes out."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol

import torch

from probekd.teacher.attention import Packing, PrefixKeys, packed_attention
from probekd.teacher.packing import Branch, Tree

if TYPE_CHECKING:
    from probekd.teacher.load import Teacher


class Batch(Protocol):
    """Sequences that are computed together.

    Attributes:
        members: The sequences that are read; none of a prefix.
        shape: (rows, columns) of the token ids.
    """

    members: tuple[Branch, ...]
    shape: tuple[int, int]

    def at(self, member: int, token: int) -> int:
        """Index of a member's token among the rows * columns states."""
        ...

    def inputs(self, teacher: Teacher) -> dict[str, Any]:
        """Arguments of the model's body."""
        ...

    def attention(self, teacher: Teacher) -> AbstractContextManager[None]:
        """What must hold while the body runs."""
        ...

    def slim(self) -> None:
        """Let go of what the next block would make again, since all batches of a streamed pass wait for it together."""
        ...

    def forget(self) -> None:
        """Let go of what was kept of the blocks that ran."""
        ...


class PackedBatch:
    """Tokens one after the other, without padding; what rows share is there once."""

    def __init__(self, members: Sequence[Branch], tokens: Sequence[int], packing: Packing, places: Sequence[_Place]):
        self.members = tuple(members)
        self.shape = (1, len(tokens))
        self._tokens, self._packing, self._places = list(tokens), packing, places

    @classmethod
    def rows(cls, trees: Sequence[Tree], device: torch.device, prefix: PrefixKeys | None = None) -> PackedBatch:
        """Rows of one group; ``prefix`` holds the keys of what they all begin with."""
        tokens: list[int] = []
        places: list[_Place] = []
        for tree in trees:
            start, trunk = tree.skipped + tree.trunk, len(tokens)
            tokens += tree.branches[0].sequence.tokens[tree.skipped : start]
            for branch in tree.branches:
                places.append(_Place(skipped=tree.skipped, start=start, trunk=trunk, rest=len(tokens)))
                tokens += branch.sequence.tokens[start:]
        return cls([b for t in trees for b in t.branches], tokens, Packing(trees, device, prefix=prefix), places)

    @classmethod
    def prefix(cls, tokens: Sequence[int], device: torch.device, keys: PrefixKeys) -> PackedBatch:
        """What the rows of a group begin with: nothing of it is read but the keys, which ``keys`` will hold."""
        return cls((), tokens, Packing((), device, length=len(tokens), records=keys), ())

    def at(self, member: int, token: int) -> int:
        """See ``Batch``."""
        place = self._places[member]
        assert token >= place.skipped, "a token of the shared prefix is not read"
        return place.trunk + token - place.skipped if token < place.start else place.rest + token - place.start

    def inputs(self, teacher: Teacher) -> dict[str, Any]:
        """See ``Batch``."""
        ids = torch.tensor([self._tokens], device=teacher.device)
        return {"input_ids": ids, "position_ids": self._packing.positions[None], "use_cache": False}

    def attention(self, teacher: Teacher) -> AbstractContextManager[None]:
        """See ``Batch``."""
        return packed_attention(teacher.body.config.get_text_config(), self._packing)

    def slim(self) -> None:
        """See ``Batch``."""
        self._packing.slim()

    def forget(self) -> None:
        """See ``Batch``."""
        if self._packing.records is not None:
            self._packing.records.held.clear()


class _Place(NamedTuple):
    """Where a member lies in a packed batch: its tokens from ``skipped`` to ``start`` at ``trunk``, then at ``rest``."""

    skipped: int
    start: int
    trunk: int
    rest: int


class PaddedBatch:
    """Sequences side by side, padded on the right: for models that packing does not fit.

    A causal model gets no attention mask: a token cannot see the padding to its right, so its states are exact, and
    SDPA keeps its fast causal kernel. An encoder sees both ways and gets one.
    """

    def __init__(self, members: Sequence[Branch]) -> None:
        self.members = tuple(members)
        self.shape = (len(members), max(len(m.sequence.tokens) for m in members))

    def at(self, member: int, token: int) -> int:
        """See ``Batch``."""
        return member * self.shape[1] + token

    def inputs(self, teacher: Teacher) -> dict[str, Any]:
        """See ``Batch``."""
        sequences = [m.sequence.tokens for m in self.members]
        longest = self.shape[1]
        # Nothing reads the padding, so any token serves; the tokenizer's pad token may lie beyond the embedding (Qwen2).
        ids = torch.tensor([[*s, *[0] * (longest - len(s))] for s in sequences], device=teacher.device)
        if not teacher.encoder:
            return {"input_ids": ids, "use_cache": False}
        lengths = torch.tensor([len(s) for s in sequences], device=teacher.device)
        mask = (torch.arange(longest, device=teacher.device) < lengths[:, None]).long()
        return {"input_ids": ids, "attention_mask": mask}

    def attention(self, teacher: Teacher) -> AbstractContextManager[None]:
        """See ``Batch``."""
        return nullcontext()

    def slim(self) -> None:
        """See ``Batch``."""

    def forget(self) -> None:
        """See ``Batch``."""


def fitting(sizes: Sequence[int], budget: int, *, padded: bool) -> int:
    """How many of the first items, largest first, fit into a batch of ``budget`` tokens; at least one.

    Args:
        sizes: Tokens of each item, descending.
        budget: Tokens a batch.
        padded: Every item takes as much room as the largest.
    """
    count, total = 1, sizes[0]
    while count < len(sizes) and total + (more := sizes[0] if padded else sizes[count]) <= budget:
        count, total = count + 1, total + more
    return count


def shard_slices(num_rows: int, row_bytes: int, shard_bytes: int) -> list[range]:
    """Row ranges of at most ``shard_bytes`` each, at least one row a shard."""
    rows = max(1, shard_bytes // max(1, row_bytes))
    return [range(start, min(start + rows, num_rows)) for start in range(0, num_rows, rows)]
