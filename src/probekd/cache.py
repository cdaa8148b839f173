"""The states cache as a user sees it: what is there, is it whole, and make room."""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from probekd.errors import ConfigError, StoreError
from probekd.files import cache_dir, read_json
from probekd.states import StateStore
from probekd.teacher.blocks import sweep_offloaded

# An unfinished store this young may belong to a running process.
UNFINISHED_SECONDS = 24 * 3600
_UNITS = {"": 1, "K": 10**3, "M": 10**6, "G": 10**9, "T": 10**12}


@dataclass(frozen=True, kw_only=True)
class CachedStore:
    """One directory of the cache; sizes in bytes, times in seconds since 1970."""

    key: str
    finished: bool
    bytes: int
    rows: int
    task: str
    split: str
    layout: str
    teacher: str
    used: float

    def as_dict(self) -> dict[str, Any]:
        """JSON object."""
        return asdict(self)


def list_stores() -> list[CachedStore]:
    """Every store of the cache, least recently used first."""
    root = cache_dir() / "states"
    found = [_describe(d) for d in sorted(root.iterdir()) if d.is_dir()] if root.is_dir() else []
    return sorted((s for s in found if s is not None), key=lambda s: (s.used, s.key))


def _describe(directory: Path) -> CachedStore | None:
    """A store as it is now; None where it has just been removed."""
    files = dict(_sizes_and_times(directory))
    manifest: dict[str, Any] = {}
    with contextlib.suppress(StoreError, FileNotFoundError):  # unfinished or damaged: listed as such
        manifest = read_json(directory / "manifest.json")
    if not directory.is_dir():
        return None
    # ``extract`` dates the manifest whenever it is used; times of access are not kept by every file system.
    dated = directory / "manifest.json"
    used = files[dated].st_mtime if dated in files else max((f.st_mtime for f in files.values()), default=0.0)
    return CachedStore(
        key=directory.name,
        finished=bool(manifest),
        bytes=sum(f.st_size for f in files.values()),
        rows=int(manifest.get("rows", 0)),
        task=str(manifest.get("task", "?")),
        split=str(manifest.get("split", "?")),
        layout=str(manifest.get("layout", "?")),
        teacher=str(manifest.get("teacher", {}).get("name", "?")),
        used=used,
    )


def _sizes_and_times(directory: Path) -> Iterator[tuple[Path, os.stat_result]]:
    """Files of a store, streamed states between blocks among them; without those that vanish meanwhile."""
    for folder, _, names in os.walk(directory):
        for path in (Path(folder) / name for name in names):
            with contextlib.suppress(FileNotFoundError):
                yield path, path.stat()


def verify_stores() -> dict[str, list[str]]:
    """Damaged files by store key, over all finished stores."""
    damaged = {}
    for store in list_stores():
        directory = cache_dir() / "states" / store.key
        if not (directory / "manifest.json").is_file():
            continue
        try:
            bad = StateStore.open(directory).verify()
        except StoreError:
            bad = ["manifest.json"]
        if bad:
            damaged[store.key] = bad
    return damaged


def collect(keep: int) -> list[CachedStore]:
    """Remove stores, least recently used first, until at most ``keep`` bytes are left; returns what was removed.

    What a run directory links to stays: removing it here would free nothing. So does what a process is filling.
    """
    sweep_offloaded(cache_dir() / "offload")
    stores = list_stores()
    total = sum(s.bytes for s in stores)
    removed = []
    for store in stores:
        if total <= keep:
            break
        directory = cache_dir() / "states" / store.key
        if _is_linked(directory) or (not store.finished and time.time() - store.used < UNFINISHED_SECONDS):
            continue
        with _held(store.key) as mine:
            if not mine:
                continue
            # Without its manifest a directory is unfinished to every reader, so nobody trusts one half removed.
            (directory / "manifest.json").unlink(missing_ok=True)
            shutil.rmtree(directory)
        removed.append(store)
        total -= store.bytes
    return removed


def _is_linked(directory: Path) -> bool:
    """Whether a run directory has names of its own for the store's files."""
    manifest = directory / "manifest.json"
    return manifest.is_file() and manifest.stat().st_nlink > 1


@contextlib.contextmanager
def _held(key: str) -> Iterator[bool]:
    """Hold a store against processes that would fill it; False when one of them does."""
    from filelock import FileLock, Timeout

    path = cache_dir() / "locks" / key
    path.parent.mkdir(parents=True, exist_ok=True)
    lock = FileLock(path, timeout=0)
    try:
        lock.acquire()
    except Timeout:
        yield False
        return
    try:
        yield True
    finally:
        lock.release()


def parse_size(text: str) -> int:
    """Bytes of a size such as ``20GB``, ``500M`` or ``0``; raises ConfigError for anything else."""
    match = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*([KMGT]?)B?\s*", text, flags=re.IGNORECASE)
    if not match:
        raise ConfigError(f"{text!r} is not a size; write something like 20GB, 500MB or 0")
    return int(float(match[1]) * _UNITS[match[2].upper()])


def print_stores(stores: list[CachedStore]) -> None:
    """A table for people."""
    from rich.console import Console
    from rich.table import Column, Table
    from rich.text import Text

    table = Table(
        Column("key", no_wrap=True),
        "task",
        "split",
        "layout",
        "teacher",
        "rows",
        "MB",
        "last used",
        box=None,
        header_style="bold",
    )
    for s in stores:
        last = time.strftime("%Y-%m-%d %H:%M", time.localtime(s.used))
        cells = (
            s.key,
            s.task if s.finished else "(unfinished)",
            s.split,
            s.layout,
            s.teacher,
            str(s.rows),
            f"{s.bytes / 1e6:,.1f}",
            last,
        )
        table.add_row(*(Text(c) for c in cells))
    Console().print(table if stores else "the cache is empty")
