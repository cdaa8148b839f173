"""Writing so that a reader never meets half a file, and a full disk ends in a message."""

from __future__ import annotations

import errno
import glob
import hashlib
import json
import os
import shutil
import uuid
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from probekd.errors import StoreError

if TYPE_CHECKING:
    from torch import Tensor


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Yield a temporary path beside ``path``; on success it takes ``path``'s place, on failure it is removed.

    Works for a file or a directory, whichever the body makes.

    Raises:
        StoreError: the disk is full or may not be written to.
    """
    temporary = path.with_name(f".{path.name}.{uuid.uuid4().hex[:8]}.tmp")
    try:
        with explained(path):
            path.parent.mkdir(parents=True, exist_ok=True)
            yield temporary
            if not (temporary.is_dir() and path.exists()):
                os.replace(temporary, path)
                return
            # Out of the way in one step: a kill amid its removal would leave half of it under its name.
            old = path.with_name(f".{path.name}.{uuid.uuid4().hex[:8]}.tmp")
            os.replace(path, old)
            os.replace(temporary, path)
            _remove(old)
    except BaseException:
        _remove(temporary)
        raise


@contextmanager
def explained(path: Path) -> Iterator[None]:
    """Say it in a sentence when ``path`` cannot be written; raises StoreError as ``replacing`` does."""
    try:
        yield
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise StoreError(
                f"the disk is full: {path} could not be written; free some space and run the same command again to go on"
            ) from None
        if error.errno in (errno.EACCES, errno.EPERM, errno.EROFS):
            raise StoreError(f"{path} may not be written ({error.strerror}); choose another directory") from None
        raise


def remove_leftovers(directory: Path) -> None:
    """Remove what ``replacing`` left behind when its process was killed; the caller holds the directory alone."""
    for leftover in sorted(directory.rglob(".*.????????.tmp")):
        _remove(leftover)


def remove_leftovers_of(path: Path) -> None:
    """Remove what ``replacing(path)`` left beside ``path`` when its process was killed; the caller alone writes ``path``."""
    for leftover in sorted(path.parent.glob(f".{glob.escape(path.name)}.????????.tmp")):
        _remove(leftover)


def _remove(path: Path) -> None:
    if path.is_dir():
        shutil.rmtree(path, ignore_errors=True)
    else:
        path.unlink(missing_ok=True)


def write_text(path: Path, text: str) -> None:
    """Write a UTF-8 file atomically."""
    with replacing(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def json_text(value: Any) -> str:
    """JSON as it is written; refuses NaN and infinity, which JSON does not have."""
    return json.dumps(value, indent=1, ensure_ascii=False, allow_nan=False) + "\n"


def write_json(path: Path, value: Any) -> None:
    """Write JSON atomically."""
    write_text(path, json_text(value))


def read_json(path: Path) -> Any:
    """Read JSON; raises StoreError naming the file when it is missing or damaged."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise StoreError(f"{path}: no such file") from None
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise StoreError(f"{path} is damaged ({error}); remove it and run again") from None


def save_tensors(tensors: Mapping[str, Tensor], path: Path, metadata: Mapping[str, str]) -> None:
    """Write a safetensors file that others may read; its own error for a full disk is made the system's."""
    from safetensors import SafetensorError
    from safetensors.torch import save_file

    try:
        save_file(dict(tensors), path, metadata=dict(metadata))
    except SafetensorError as error:
        if "os error 28" in str(error):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC)) from None
        raise
    path.chmod(0o644)


def flush(path: Path) -> None:
    """Wait until a file is on the disk, so that a power cut cannot leave its name without its bytes."""
    with path.open("rb") as stream:
        os.fsync(stream.fileno())


def file_digest(path: Path) -> str:
    """SHA-256 of a file's bytes, hex."""
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def cache_dir() -> Path:
    """Where states are kept: the variable PROBEKD_CACHE, else ~/.cache/probekd; raises StoreError when that is a file."""
    path = Path(os.environ.get("PROBEKD_CACHE") or Path.home() / ".cache" / "probekd")
    if path.exists() and not path.is_dir():
        raise StoreError(f"{path} is a file, and the cache is a directory; set PROBEKD_CACHE to another place")
    return path
