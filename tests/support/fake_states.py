"""States without a teacher: what probes ask of a States, answered from dictionaries."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from probekd.probes.features import ArrayBlocks

TEACHER = {"name": "a teacher", "fingerprint": "f1", "blocks": 3, "width": 8, "dtype": "float32"}


@dataclass(frozen=True, kw_only=True)
class FakeStates:
    """States held in memory.

    Attributes:
        splits: Ids of each split, in any order.
        values: ``(layout, position, depth) -> id -> (d,) or (k, d)``.
        columns: ``layout -> column -> id -> value``.
        orders: Option orders in which the rows were read.
    """

    splits: Mapping[str, Sequence[str]]
    values: Mapping[tuple[str, str, int], Mapping[str, np.ndarray]] = field(default_factory=dict)
    columns: Mapping[str, Mapping[str, Mapping[str, Any]]] = field(default_factory=dict)
    teacher: Mapping[str, Any] = field(default_factory=lambda: dict(TEACHER))
    orders: int = 1

    @property
    def layouts(self) -> tuple[str, ...]:
        return tuple(self.columns)

    def holding(self, layout: str, ids: Sequence[str]) -> FakeStates:
        return replace(self, columns={layout: self.columns[layout]})

    def permutations(self, layout: str) -> int:
        return self.orders

    def positions(self, layout: str) -> tuple[str, ...]:
        return tuple(dict.fromkeys(pos for lay, pos, _ in self.values if lay == layout))

    def depths(self, layout: str) -> tuple[int, ...]:
        return tuple(sorted({depth for lay, _, depth in self.values if lay == layout}))

    def outputs(self, layout: str) -> tuple[str, ...]:
        return tuple(name for name in self.columns[layout] if name in ("label_logits", "option_loglik"))

    def ids(self, layout: str, split: str) -> list[str]:
        return sorted(self.splits.get(split, ()))

    def read(self, layout: str, position: str, depth: int, ids: Sequence[str]) -> np.ndarray:
        """(n, d), or (n, k, d) with zeros beyond a row's options."""
        held = self.values[layout, position, depth]
        if next(iter(held.values())).ndim == 1:
            return np.stack([held[i] for i in ids]).astype(np.float32)
        widest = max(len(v) for v in held.values())
        return np.stack([np.pad(held[i], ((0, widest - len(held[i])), (0, 0))) for i in ids]).astype(np.float32)

    def blocks(self, layout: str, position: str, depth: int, ids: Sequence[str]) -> ArrayBlocks:
        return ArrayBlocks(self.read(layout, position, depth, ids))

    def in_stored_order(self, layout: str, ids: Sequence[str]) -> list[str]:
        return sorted(ids)

    def column(self, layout: str, name: str, ids: Sequence[str]) -> list[Any]:
        return [self.columns[layout][name][i] for i in ids]
