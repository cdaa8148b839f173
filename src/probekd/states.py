"""StateStore: what extraction writes and probes read.

A store holds the states of one layout of one set of rows. Its name is a hash of everything that could change a state:
token ids, model fingerprint, dtype, positions, depths, attention implementation and library versions. The manifest is
written last, so a directory with a manifest is whole.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq

from probekd.config import Layout, Position
from probekd.errors import DataError, StoreError
from probekd.files import file_digest, json_text, read_json, replacing
from probekd.tasks.base import content_hash

FORMAT = 1
BLOCK_BYTES = 2**26


@dataclass(frozen=True)
class StateStore:
    """A finished directory of states."""

    directory: Path
    manifest: Mapping[str, Any]

    @classmethod
    def open(cls, directory: Path) -> StateStore:
        """Open a finished store.

        Raises:
            StoreError: no manifest (extraction has not finished), or one of another format version.
        """
        path = directory / "manifest.json"
        if not path.is_file():
            raise StoreError(
                f"{directory}: not a finished state store (no manifest.json); run the extraction again to finish it"
            )
        manifest = read_json(path)
        if not isinstance(manifest, dict) or manifest.get("format") != FORMAT:
            found = manifest.get("format") if isinstance(manifest, dict) else manifest
            raise StoreError(
                f"{directory}: written by another version (format {found!r}, this is {FORMAT}); remove it and extract again"
            )
        return cls(directory, manifest)

    @property
    def layout(self) -> Layout:
        """Prompt layout of the rows."""
        return self.manifest["layout"]  # type: ignore[no-any-return]

    @property
    def positions(self) -> tuple[Position, ...]:
        """Positions held."""
        return tuple(self.manifest["positions"])

    @property
    def depths(self) -> tuple[int, ...]:
        """Depths held, ascending."""
        return tuple(self.manifest["depths"])

    @property
    def permutations(self) -> int:
        """Option orders m in which each row was read; where m > 1, the column ``orders`` of the index lists them."""
        return int(self.manifest.get("permutations", 1))

    @cached_property
    def index(self) -> dict[str, list[Any]]:
        """Columns of index.parquet, in the shards' row order."""
        return dict(pq.read_table(self.directory / "index.parquet").to_pydict())

    @cached_property
    def row_of(self) -> dict[str, int]:
        """Row number of each id."""
        return {row_id: i for i, row_id in enumerate(self.index["id"])}

    def read(self, position: Position, depth: int, rows: Sequence[int]) -> np.ndarray:
        """States of some rows: (len(rows), d), or (len(rows), k, d) for option positions; float32.

        With m > 1 permutations, option states are means over the orders and ``answer`` is (len(rows), m, d), one state
        for each order of the index's column ``orders``.

        Of the shards that hold the rows, only the asked depth is read, from the first to the last row asked for.
        """
        from safetensors import safe_open

        which = self.depths.index(depth)
        wanted = np.asarray(rows)
        out: np.ndarray | None = None
        start = 0
        for shard in self.manifest["shards"]:
            inside = np.flatnonzero((wanted >= start) & (wanted < start + shard["rows"]))
            if len(inside):
                local = wanted[inside] - start
                first, last = int(local.min()), int(local.max())
                with safe_open(self.directory / shard["file"], framework="pt") as tensors:
                    part = tensors.get_slice(position)[which : which + 1, first : last + 1]
                values = part[0].float().numpy()
                if out is None:
                    out = np.empty((len(wanted), *values.shape[1:]), dtype=np.float32)
                out[inside] = values[local - first]
            start += shard["rows"]
        if out is None:
            raise StoreError(f"{self.directory}: no rows to read")
        return out

    def verify(self) -> list[str]:
        """Names of files whose bytes are not those that were written, down to the last bit."""
        if not _is_sealed(self.directory / "manifest.json"):
            return ["manifest.json"]
        bad = []
        for entry in [*self.manifest["shards"], self.manifest["index"]]:
            path = self.directory / entry["file"]
            if not path.is_file() or file_digest(path) != entry["sha256"]:
                bad.append(entry["file"])
        return bad


def seal(manifest: Mapping[str, Any]) -> dict[str, Any]:
    """The manifest with a checksum of itself."""
    return {**manifest, "sha256": content_hash(json_text(manifest))}


def _is_sealed(path: Path) -> bool:
    """Whether a manifest's bytes are those that were written; a change that JSON does not see is one too."""
    manifest = read_json(path)
    if not isinstance(manifest, dict):
        return False
    bare = {name: value for name, value in manifest.items() if name != "sha256"}
    # Stores of before there were seals have neither key; their shards' checksums are looked at all the same.
    old = "sha256" not in manifest and "pass" not in manifest
    return old or path.read_bytes() == json_text(seal(bare)).encode()


@dataclass(frozen=True)
class States:
    """The stores of a task: any number of sets of rows, in one or two layouts."""

    stores: tuple[StateStore, ...]

    def __add__(self, other: States) -> States:
        return States(self.stores + other.stores)

    def holding(self, layout: Layout, ids: Sequence[str]) -> States:
        """The stores of one layout that hold some of the rows."""
        return States(tuple(s for s in self.stores if s.layout == layout and any(i in s.row_of for i in ids)))

    @property
    def layouts(self) -> tuple[Layout, ...]:
        """Layouts held."""
        return tuple(dict.fromkeys(store.layout for store in self.stores))

    def positions(self, layout: Layout) -> tuple[Position, ...]:
        """Positions held for a layout by every one of its stores."""
        held = [set(s.positions) for s in self.stores if s.layout == layout]
        return tuple(p for p in ("answer", "option_end", "option_mean") if all(p in h for h in held))

    def depths(self, layout: Layout) -> tuple[int, ...]:
        """Depths held for a layout by every one of its stores."""
        held = [set(s.depths) for s in self.stores if s.layout == layout]
        return tuple(sorted(set.intersection(*held))) if held else ()

    @property
    def teacher(self) -> Mapping[str, Any]:
        """Name, fingerprint, block count and width of the teacher; one for all stores.

        Raises:
            StoreError: the stores come from different teachers or dtypes, which must never be mixed.
        """
        # The same weights may lie under two names.
        teachers = {
            (s.manifest["teacher"]["fingerprint"], s.manifest["teacher"]["dtype"]): s.manifest["teacher"]
            for s in self.stores
        }
        if len(teachers) != 1:
            raise StoreError(f"states of {len(teachers)} different teachers or dtypes cannot be used together")
        return next(iter(teachers.values()))

    def permutations(self, layout: Layout) -> int:
        """Option orders in which the rows of a layout were read; 1 where there are no rows.

        Raises:
            StoreError: its stores were read in different numbers of orders, which must not be mixed.
        """
        numbers = {s.permutations for s in self.stores if s.layout == layout} or {1}
        if len(numbers) > 1:
            raise StoreError(
                f"{layout} states read in {' and '.join(map(str, sorted(numbers)))} option orders cannot be used together; "
                "extract them with the same prompt.permutations"
            )
        return numbers.pop()

    def ids(self, layout: Layout, split: str) -> list[str]:
        """Ids of a split's rows, in the order of their ids, so that it does not depend on how they were stored."""
        return sorted(
            {i for s in self.stores if s.layout == layout and s.manifest["split"] == split for i in s.index["id"]}
        )

    def read(self, layout: Layout, position: Position, depth: int, ids: Sequence[str]) -> np.ndarray:
        """States of rows by id, (n, d) or (n, k, d) float32, k the most options that any of the stores holds.

        With m > 1 permutations ``answer`` is (n, m, d): one state for each order of the column ``orders``.

        Raises:
            DataError: an id that was not extracted, or no ids.
            StoreError: the stores were read in different numbers of option orders.
        """
        if not ids:
            raise DataError("no rows are asked for, so that their states have no shape; give at least one id")
        parts, places = [], []
        there = [s for s in self.stores if position in s.positions and depth in s.depths]
        for store, where, rows in self._find(layout, ids, there):
            parts.append(store.read(position, depth, rows))
            places.append(where)
        widest = max((p.shape[1] for p in parts if p.ndim == 3), default=0)
        parts = [np.pad(p, ((0, 0), (0, widest - p.shape[1]), (0, 0))) if p.ndim == 3 else p for p in parts]
        out = np.empty((len(ids), *parts[0].shape[1:]), dtype=np.float32)
        for part, where in zip(parts, places, strict=True):
            out[where] = part
        return out

    def blocks(self, layout: Layout, position: Position, depth: int, ids: Sequence[str]) -> StoredBlocks:
        """As ``read``, block by block; raises DataError for an id that was not extracted."""
        return StoredBlocks(states=self, layout=layout, position=position, depth=depth, ids=tuple(ids))

    def in_stored_order(self, layout: Layout, ids: Sequence[str]) -> list[str]:
        """Ids as the layout's stores hold them: an order that reads shards from end to end and follows content alone."""
        return [
            ids[i]
            for _, where, rows in self._find(layout, ids, self.stores)
            for _, i in sorted(zip(rows, where, strict=True))
        ]

    def column(self, layout: Layout, name: str, ids: Sequence[str]) -> list[Any]:
        """A column of the stores' indices, by id."""
        out: list[Any] = [None] * len(ids)
        there = [s for s in self.stores if s.layout == layout and name in s.index]
        for store, where, rows in self._find(layout, ids, there):
            values = store.index[name]
            for i, row in zip(where, rows, strict=True):
                out[i] = values[row]
        return out

    def outputs(self, layout: Layout) -> tuple[str, ...]:
        """Output readouts recorded with every store of a layout."""
        held = [set(s.manifest["outputs"]) for s in self.stores if s.layout == layout]
        return tuple(sorted(set.intersection(*held))) if held else ()

    def _find(
        self, layout: Layout, ids: Sequence[str], stores: Sequence[StateStore]
    ) -> list[tuple[StateStore, list[int], list[int]]]:
        """Where rows lie among some stores, each in the first that has it."""
        self.permutations(layout)  # refuses stores that must not be mixed
        missing = set(range(len(ids)))
        found = []
        for store in stores:
            if store.layout != layout:
                continue
            where = [i for i in missing if ids[i] in store.row_of]
            where.sort()
            missing -= set(where)
            if where:
                found.append((store, where, [store.row_of[ids[i]] for i in where]))
        if missing:
            first = ids[min(missing)]
            raise DataError(
                f"{len(missing)} rows, such as {first!r}, have no {layout} states; extract their split first"
            )
        return found


@dataclass(frozen=True, kw_only=True)
class StoredBlocks:
    """States of rows at one depth, read from the shards a block at a time."""

    states: States
    layout: Layout
    position: Position
    depth: int
    ids: tuple[str, ...]

    @cached_property
    def shape(self) -> tuple[int, ...]:
        """(n, d), or (n, k, d)."""
        one = self.states.read(self.layout, self.position, self.depth, self.ids[:1])
        if one.ndim == 2:
            return (len(self.ids), one.shape[1])
        widest = max(s.manifest["max_options"] for s in self.states.stores if s.layout == self.layout)
        return (len(self.ids), widest, one.shape[2])

    def blocks(self) -> Iterator[tuple[slice, np.ndarray]]:
        """Rows in the order of ``ids``, float32."""
        row_bytes = int(np.prod(self.shape[1:])) * 4
        step = max(1, BLOCK_BYTES // row_bytes)
        for start in range(0, len(self.ids), step):
            ids = self.ids[start : start + step]
            block = self.states.read(self.layout, self.position, self.depth, ids)
            if block.ndim == 3 and block.shape[1] < self.shape[1]:
                block = np.pad(block, ((0, 0), (0, self.shape[1] - block.shape[1]), (0, 0)))
            yield slice(start, start + len(ids)), block


def link_store(store: StateStore, directory: Path) -> StateStore:
    """Give a run directory its own name for a store's files: hard links, or copies across file systems.

    A link keeps the run whole when the cache is emptied, and costs no space.

    Raises:
        StoreError: the store in the cache is damaged, or is removed meanwhile.
    """
    target = directory / store.directory.name
    if not _is_copy(target, store):
        if bad := store.verify():
            raise StoreError(
                f"{store.directory} is damaged ({', '.join(bad)}); remove this directory and run the same command again"
            )
        with replacing(target) as temporary:
            temporary.mkdir()
            try:
                for file in sorted(f for f in store.directory.iterdir() if not f.name.startswith(".")):
                    _link(file, temporary / file.name)
            except FileNotFoundError:
                raise StoreError(
                    f"{store.directory} was removed while it was being used; run the same command again"
                ) from None
    return StateStore.open(target)


def _link(file: Path, name: Path) -> None:
    """A hard link, or a copy where there is none; raises FileNotFoundError."""
    import shutil

    try:
        os.link(file, name)
    except FileNotFoundError:
        raise
    except OSError:
        shutil.copy2(file, name)


def _is_copy(directory: Path, store: StateStore) -> bool:
    """Whether a directory holds a store's files, whole."""
    manifest = directory / "manifest.json"
    same = manifest.is_file() and manifest.read_bytes() == (store.directory / "manifest.json").read_bytes()
    return same and not StateStore(directory, store.manifest).verify()
