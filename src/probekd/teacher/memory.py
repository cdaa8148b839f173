"""Does a teacher fit? What its weights take, and what is free."""

from __future__ import annotations

import math
import sys
from collections.abc import Iterator
from functools import cache
from pathlib import Path

from probekd.files import read_json

# Of the free memory that weights may take: batches, and what loading needs besides, take the rest.
FOR_WEIGHTS = 0.9

# Of glibc's mallopt: what a block must have to be handed back as soon as it is freed, and the same of free memory at the end.
_MMAP_THRESHOLD, _TRIM_THRESHOLD = -3, -1
_KEPT = 2**30


@cache
def keep_freed_memory() -> None:
    """Have the C library of this process keep blocks that are freed, for good.

    A pass frees and takes the same megabytes at every layer. glibc hands them back to the system each time, and each page
    is cleared anew: up to a tenth of the time. Other C libraries decide for themselves.
    """
    import ctypes

    mallopt = getattr(ctypes.CDLL(None), "mallopt", None) if sys.platform == "linux" else None
    if mallopt is not None:
        mallopt(_MMAP_THRESHOLD, _KEPT)
        mallopt(_TRIM_THRESHOLD, _KEPT)


def fits(source: Path, dtype: str, device: str) -> bool:
    """Whether all of a model's weights can be held, and a pass be run beside them."""
    return weight_bytes(source, dtype) <= FOR_WEIGHTS * free_memory(device)


def weight_bytes(source: Path, dtype: str) -> int:
    """Bytes that the weights of a directory, or of a GGUF file, take in memory when they are loaded as ``dtype``."""
    return _weight_count(source) * (4 if dtype == "float32" else 2)


def _weight_count(source: Path) -> int:
    from safetensors import safe_open

    if source.suffix == ".gguf":
        from gguf import GGUFReader

        return sum(int(tensor.n_elements) for tensor in GGUFReader(source).tensors)
    index = source / "model.safetensors.index.json"
    # The index says which files are read: others may hold the same weights in another form (Mistral's consolidated ones).
    named = set(read_json(index)["weight_map"].values()) if index.is_file() else {"model.safetensors"}
    files = [f for f in source.glob("*.safetensors") if f.name in named] or sorted(source.glob("*.safetensors"))
    if not files:
        # The older form does not say its type without being unpickled; models large enough to matter have two bytes.
        return sum(file.stat().st_size for file in source.glob("pytorch_model*.bin")) // 2
    total = 0
    for file in files:
        with safe_open(file, framework="pt") as tensors:
            total += sum(math.prod(tensors.get_slice(name).get_shape()) for name in tensors.keys())  # noqa: SIM118
    return total


def free_memory(device: str) -> int:
    """Bytes that can be taken on a device without swapping, and without leaving what a container allows."""
    import psutil  # type: ignore[import-untyped]
    import torch

    if device.startswith("cuda"):
        return int(torch.cuda.mem_get_info(torch.device(device))[0])
    return min(
        [int(psutil.virtual_memory().available), *cgroup_rooms(Path("/sys/fs/cgroup"), Path("/proc/self/cgroup"))]
    )


def cgroup_rooms(mounted: Path, own: Path) -> Iterator[int]:
    """Bytes that are left to this process by each control group that it is in; of the machine's memory psutil knows alone.

    Args:
        mounted: Where the groups are found; those of version 2, or the memory controller's of version 1.
        own: The file that names the process's groups.
    """
    for line in own.read_text().splitlines() if own.is_file() else []:
        _, controllers, path = line.split(":", 2)
        names = ("memory.max", "memory.current", "inactive_file")
        root = mounted
        if "memory" in controllers.split(","):
            names = ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file")
            root = mounted / "memory"
        elif controllers:
            continue
        # A container may see its own group as the root, under a name that only the machine outside knows.
        group = root / path.lstrip("/")
        for directory in (group, *group.parents):
            if directory.is_relative_to(root):
                yield from _room(directory, *names)


def _room(group: Path, limit: str, usage: str, reclaimable: str) -> Iterator[int]:
    files = (group / limit, group / usage, group / "memory.stat")
    if not all(file.is_file() for file in files):
        return
    most, used, stat = (file.read_text() for file in files)
    if most.strip() == "max":
        return
    # Cached files that nobody has open make room for whoever asks.
    cached = next((int(line.split()[1]) for line in stat.splitlines() if line.split()[0] == reclaimable), 0)
    yield max(0, int(most) - (int(used) - cached))
