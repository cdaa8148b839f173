"""Attention over packed rows: one flat sequence without padding in which branches share a trunk and rows a prefix.

Everything but attention works on single tokens, so only attention needs to know which row a token is of. Transformers
calls a registered function with queries and keys that already carry their positions, for every family that uses its
attention interface; ours gathers rows, masks what a token must not see, and scatters the result. A model that does not
call it is found out by ``check`` and read in padded batches instead.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch
from torch.nn import functional

from probekd.teacher.packing import Tree

if TYPE_CHECKING:
    from torch import Tensor

NAME = "probekd_packed"


@dataclass(eq=False, kw_only=True)
class PrefixKeys:
    """Keys and values of a shared prefix of P tokens, by attention module: (heads, P, head width) each.

    Attributes:
        length: P.
        held: Filled while the prefix itself is computed.
    """

    length: int
    held: dict[Any, tuple[Tensor, Tensor]] = field(default_factory=dict)


class Packing:
    """Where the T tokens of a batch belong: R rows of at most L tokens each.

    Args:
        trees: The rows; empty for a prefix of ``length`` tokens, which is one row.
        length: Of the prefix, when that is what is computed.
        prefix: What the rows continue.
        records: Filled with the keys and values of this batch, a prefix.
    """

    def __init__(
        self,
        trees: Sequence[Tree],
        device: torch.device,
        *,
        length: int = 0,
        prefix: PrefixKeys | None = None,
        records: PrefixKeys | None = None,
    ) -> None:
        self.prefix, self.records = prefix, records
        self._elsewhere: dict[torch.device, Packing] = {}
        rows = [_places(t) for t in trees] or [(list(range(length)), [0] * length)]
        sizes = [len(positions) for positions, _ in rows]
        self.longest = max(sizes)
        self.positions = torch.tensor([p for positions, _ in rows for p in positions], device=device)
        self._branching = any(any(branch) for _, branch in rows)
        lengths = torch.tensor(sizes, device=device)
        column = torch.arange(self.longest, device=device)
        self.there = column < lengths[:, None]  # (R, L)
        starts = lengths.cumsum(0) - lengths
        # Padding points at the row's first token: it is computed, and never looked at.
        self.gather = torch.where(self.there, starts[:, None] + column, starts[:, None])
        flat = torch.tensor([b for _, branch in rows for b in branch], device=device)
        self._branch, self._position = flat[self.gather], self.positions[self.gather]
        self._last = int(self.positions.max())
        # What ``mask`` made, by what it was asked: the blocks of one kind ask for the same.
        self.masks: dict[tuple[int | None, torch.dtype, int], Tensor | None] = {}

    def on(self, device: torch.device) -> Packing:
        """The same on another device: a model's blocks may be spread over several (``device_map``)."""
        if device == self.gather.device:
            return self
        if device not in self._elsewhere:
            other = copy.copy(self)
            other.masks = {}
            for name in ("positions", "there", "gather", "_branch", "_position"):
                setattr(other, name, getattr(self, name).to(device))
            self._elsewhere[device] = other
        return self._elsewhere[device]

    def slim(self) -> None:
        """Let go of the masks, which are made again when they are asked for."""
        self.masks.clear()
        self._elsewhere.clear()

    def within(self, window: int | None) -> bool:
        """Whether a sliding window hides nothing from any token."""
        return window is None or self._last < window

    def mask(self, window: int | None, dtype: torch.dtype, ahead: int) -> Tensor | None:
        """(R, 1, L, ahead + L) added to the scores, ``ahead`` of the prefix's tokens being looked at with the row's own.

        None where plain causal attention says the same.
        """
        asked = window, dtype, ahead
        if asked not in self.masks:
            self.masks[asked] = self._mask(*asked)
        return self.masks[asked]

    def _mask(self, window: int | None, dtype: torch.dtype, ahead: int) -> Tensor | None:
        if not ahead and not self._branching and (window is None or self.longest <= window):
            return None
        query, key = self._position[:, :, None], self._position[:, None, :]
        same = (self._branch[:, None, :] == 0) | (self._branch[:, None, :] == self._branch[:, :, None])
        seen = same & (key <= query) & self.there[:, None, :]
        if ahead:
            before = torch.ones(*seen.shape[:2], ahead, dtype=torch.bool, device=seen.device)
            key = torch.cat([torch.arange(ahead, device=seen.device).expand(len(seen), 1, -1), key], dim=2)
            seen = torch.cat([before, seen], dim=2)
        if window is not None:
            seen &= query - key < window
        # Softmax over nothing is NaN: padding looks at itself.
        seen[:, :, ahead:] |= torch.eye(self.longest, dtype=torch.bool, device=seen.device) & ~self.there[:, :, None]
        return torch.zeros(seen.shape, dtype=dtype, device=seen.device).masked_fill_(~seen, float("-inf"))[:, None]


def _places(tree: Tree) -> tuple[list[int], list[int]]:
    """Position of each token of a row, and its branch: 0 is the trunk."""
    start = tree.skipped + tree.trunk
    positions, branch = list(range(tree.skipped, start)), [0] * tree.trunk
    for number, member in enumerate(tree.branches, 1):
        rest = range(start, len(member.sequence.tokens))
        positions += rest
        branch += [number] * len(rest)
    return positions, branch


_current: ContextVar[Packing] = ContextVar("packing")


@contextmanager
def packed_attention(config: Any, packing: Packing) -> Iterator[None]:
    """Have a model attend as ``packing`` says.

    Args:
        config: The text config, which the model's attention modules share.
        packing: Of the batch that is computed.
    """
    from transformers import AttentionInterface

    AttentionInterface.register(NAME, _attend)
    before = config._attn_implementation
    token = _current.set(packing)
    try:
        config._attn_implementation = NAME
        yield
    finally:
        config._attn_implementation = before
        _current.reset(token)


def _attend(
    module: Any,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    scaling: float | None = None,
    sliding_window: int | None = None,
    softcap: float | None = None,
    **_: Any,
) -> tuple[Tensor, None]:
    """Transformers' attention function: (1, heads, T, head width) in, (1, T, heads, head width) out."""
    packing = _current.get().on(query.device)
    if packing.records is not None:
        packing.records.held[module] = (key[0], value[0])
    q, k, v = (x[0][:, packing.gather].transpose(0, 1) for x in (query, key, value))  # (R, heads, L, head width)
    before = packing.prefix.held[module] if packing.prefix is not None else None
    if before is None or (softcap is None and packing.within(sliding_window) and _tells_sums(q, v)):
        ahead = 0
    else:
        k, v = (torch.cat([b.expand(len(q), -1, -1, -1), x], dim=2) for b, x in zip(before, (k, v), strict=True))
        ahead, before = before[0].shape[1], None
    if repeat := q.shape[1] // k.shape[1] - 1:
        k, v = (x[:, :, None].expand(-1, -1, repeat + 1, -1, -1).flatten(1, 2) for x in (k, v))
    mask = packing.mask(sliding_window, q.dtype, ahead)
    if before is not None:
        out = _beside_prefix(q, k, v, mask, before, scaling)
    elif softcap is None:
        out = functional.scaled_dot_product_attention(q, k, v, attn_mask=mask, is_causal=mask is None, scale=scaling)
    else:
        out = _capped(q, k, v, mask, scaling, softcap)
    return out.transpose(1, 2)[packing.there][None], None


def _tells_sums(q: Tensor, v: Tensor) -> bool:
    """Whether PyTorch's kernel says the sums of its softmax here."""
    return q.device.type == "cpu" and q.shape[-1] == v.shape[-1]


def _beside_prefix(
    q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, before: tuple[Tensor, Tensor], scaling: float | None
) -> Tensor:
    """Attention to a row's own tokens and to the prefix apart, joined by the sums of their softmaxes.

    So the prefix is neither copied for each row nor masked, and all rows are one long list of its queries (cascade
    attention: Juravsky et al. 2024, "Hydragen").
    """
    # What scaled_dot_product_attention calls on a CPU; itself it keeps the sums.
    attend = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu
    heads, width = before[0].shape[0], q.shape[-1]
    # Query heads that share keys are more queries of these.
    asking = q.transpose(0, 1).reshape(1, heads, -1, width)
    there, there_sum = attend(asking, before[0][None], before[1][None], 0.0, False, scale=scaling)
    own, own_sum = attend(q, k, v, 0.0, mask is None, attn_mask=mask, scale=scaling)
    shape = (q.shape[1], q.shape[0], q.shape[2])
    weight = torch.sigmoid(there_sum.reshape(shape).transpose(0, 1) - own_sum)[..., None].to(q.dtype)
    return torch.lerp(own, there.reshape(*shape, width).transpose(0, 1), weight)


def _capped(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, scaling: float | None, softcap: float) -> Tensor:
    """Attention with a soft cap on its scores (Gemma-2), which PyTorch's has not."""
    scores = q @ k.mT * (scaling if scaling is not None else q.shape[-1] ** -0.5)
    scores = torch.tanh(scores / softcap) * softcap
    if mask is None:
        longest = scores.shape[-1]
        mask = torch.full((longest, longest), float("-inf"), dtype=scores.dtype, device=scores.device).triu(1)
    return (scores + mask).softmax(dim=-1, dtype=torch.float32).to(v.dtype) @ v
