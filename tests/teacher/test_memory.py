from __future__ import annotations

import platform
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import psutil
import pytest
from gguf_files import write_gguf
from safetensors.torch import load_file

from probekd.teacher.memory import cgroup_rooms, fits, free_memory, weight_bytes


def test_weights_that_are_there_twice_count_once(model_dir: Callable[[str], Path], tmp_path: Path) -> None:
    """As Mistral's repositories have them."""
    directory = Path(shutil.copytree(model_dir("llama"), tmp_path / "model"))
    once = weight_bytes(directory, "float32")
    shutil.copy(directory / "model.safetensors", directory / "consolidated.safetensors")
    assert (
        weight_bytes(directory, "float32")
        == once
        == sum(4 * w.numel() for w in load_file(directory / "model.safetensors").values())
    )


def test_weights_of_a_gguf_file(model_dir: Callable[[str], Path], tmp_path: Path) -> None:
    file = write_gguf(model_dir("llama"), tmp_path / "tiny.gguf", half=True)
    assert weight_bytes(file, "float32") == weight_bytes(model_dir("llama"), "float32")


def group(directory: Path, **files: str) -> None:
    directory.mkdir(parents=True, exist_ok=True)
    for name, text in files.items():
        (directory / name.replace("__", ".")).write_text(text)


def test_a_container_may_allow_less_than_the_machine_has(tmp_path: Path) -> None:
    root, own = tmp_path / "cgroup", tmp_path / "own"
    own.write_text("0::/outer/inner\n")
    group(root / "outer", memory__max="1000\n", memory__current="700\n", memory__stat="anon 500\ninactive_file 200\n")
    group(root / "outer" / "inner", memory__max="max\n", memory__current="650\n", memory__stat="inactive_file 10\n")
    assert list(cgroup_rooms(root, own)) == [500]
    group(root / "outer" / "inner", memory__max="600\n")
    assert list(cgroup_rooms(root, own)) == [0, 500], "a group above its limit has no room"


def test_a_container_that_sees_its_own_group_as_the_root(tmp_path: Path) -> None:
    root, own = tmp_path / "cgroup", tmp_path / "own"
    own.write_text("0::/known/to/the/machine/alone\n")
    group(root, memory__max="1000\n", memory__current="100\n", memory__stat="inactive_file 0\n")
    assert list(cgroup_rooms(root, own)) == [900]


def test_the_older_version_of_control_groups(tmp_path: Path) -> None:
    root, own = tmp_path / "cgroup", tmp_path / "own"
    own.write_text("12:cpu,cpuacct:/job\n7:memory:/job\n0::/\n")
    group(
        root / "memory" / "job",
        memory__limit_in_bytes="1000\n",
        memory__usage_in_bytes="300\n",
        memory__stat="inactive_file 5\ntotal_inactive_file 100\n",
    )
    assert list(cgroup_rooms(root, own)) == [800]


def test_a_machine_without_groups(tmp_path: Path) -> None:
    assert list(cgroup_rooms(tmp_path / "none", tmp_path / "none")) == []


def test_the_least_of_what_is_free_counts(monkeypatch: pytest.MonkeyPatch) -> None:
    everything = psutil.virtual_memory().total
    assert 0 < free_memory("cpu") <= everything
    monkeypatch.setattr("probekd.teacher.memory.cgroup_rooms", lambda *_: iter([everything, 12345]))
    assert free_memory("cpu") == 12345


def test_weights_leave_room_for_what_is_computed(
    model_dir: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    needed = weight_bytes(model_dir("llama"), "float32")
    for free, expected in ((needed, False), (needed * 2, True)):
        monkeypatch.setattr("probekd.teacher.memory.free_memory", lambda _, free=free: free)
        assert fits(model_dir("llama"), "float32", "cpu") is expected


FAULTS = """
import resource
import torch
from probekd.teacher.memory import keep_freed_memory

def faults():
    for _ in range(20):  # a few places are taken before one is found free
        torch.zeros(10_000_000).add_(1)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(10):
        torch.zeros(10_000_000).add_(1)
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before

returned = faults()
keep_freed_memory()
print(returned, faults())
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="other C libraries decide for themselves what they keep")
def test_memory_that_is_freed_is_not_cleared_anew() -> None:
    done = subprocess.run([sys.executable, "-c", FAULTS], capture_output=True, text=True, check=True)
    returned, kept = map(int, done.stdout.split())
    assert returned > 10 * 40e6 / 4096 / 2  # most pages of ten times 40 MB
    assert kept < returned / 20
