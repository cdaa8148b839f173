"""Stores under what happens to them: kills, flipped bytes, several processes at once, a full disk."""

from __future__ import annotations

import errno
import json
import os
import random
import shutil
import threading
import time
from collections.abc import Callable
from multiprocessing.process import BaseProcess
from pathlib import Path

import forked
import pytest
from store_filler import fill

from probekd.cache import collect, list_stores, verify_stores
from probekd.errors import StoreError
from probekd.extraction import extract
from probekd.states import StateStore, link_store
from probekd.tasks.base import Task
from probekd.teacher.blocks import OffloadFolder
from probekd.teacher.load import Teacher

ModelDir = Callable[[str], Path]


def start(model: Path, cache: Path, memory: str, log: Path) -> BaseProcess:
    return forked.start(fill, model, cache, memory, log, log=said(log), PROBEKD_CACHE=str(cache))


def said(log: Path) -> Path:
    return log.with_suffix(".said")


def contents(cache: Path) -> dict[str, bytes]:
    """Every file of the one store, without what tells the time."""
    (directory,) = (cache / "states").iterdir()
    found = {p.name: p.read_bytes() for p in sorted(directory.iterdir())}
    manifest = json.loads(found["manifest.json"])
    assert StateStore.open(directory).verify() == []
    kept = {k: v for k, v in manifest.items() if k not in ("seconds", "sha256")}
    return {**found, "manifest.json": json.dumps(kept).encode()}


@pytest.mark.slow
@pytest.mark.parametrize("memory", ["whole", "streamed"])
def test_sigkills_leave_a_store_like_an_undisturbed_one(memory: str, model_dir: ModelDir, tmp_path: Path) -> None:
    kills = int(os.environ.get("PROBEKD_TEST_KILLS", "4"))
    model, log = model_dir("llama"), tmp_path / "log"
    forked.ready(said(log))
    began = time.monotonic()
    forked.finished(start(model, tmp_path / "undisturbed", memory, tmp_path / "other"), said(tmp_path / "other"))
    whole = time.monotonic() - began
    draw = random.Random(kills)
    cache = tmp_path / "killed"
    done = 0
    while done < kills:
        process = start(model, cache, memory, log)
        time.sleep(whole * draw.random())
        process.kill()
        process.join()
        done += 1
        if list(cache.glob("states/*/manifest.json")):
            shutil.rmtree(cache / "states")
            log.unlink(missing_ok=True)
    forked.finished(start(model, cache, memory, log), said(log))
    assert contents(cache) == contents(tmp_path / "undisturbed")
    written = [name for name in log.read_text().split() if name.startswith("shard-")]
    assert len(written) == len(set(written)), "a shard was computed again"


@pytest.mark.parametrize("damage", ["flipped", "cut", "emptied", "header", "no digest"])
def test_a_damaged_shard_of_an_unfinished_store_is_read_again(
    damage: str, llama: Teacher, choices: Task, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What a power cut or a bad disk leaves of a store that was killed before its manifest was written."""
    monkeypatch.setattr("probekd.extraction.job.ROWS_AT_ONCE", 1)
    (undisturbed,) = extract(llama, choices, splits=["train"], layouts=["listed"], cache=tmp_path / "whole").stores
    with monkeypatch.context() as patched:
        patched.setattr("probekd.extraction.job.Job._finish", interrupt)
        with pytest.raises(KeyboardInterrupt):
            extract(llama, choices, splits=["train"], layouts=["listed"], cache=tmp_path / "killed")
    (directory,) = (tmp_path / "killed" / "states").iterdir()
    shard = directory / "shard-00001.safetensors"
    content = bytearray(shard.read_bytes())
    content[-1 if damage == "flipped" else 3] ^= 1
    if damage in ("flipped", "header"):
        shard.write_bytes(content)
    elif damage == "no digest":
        (directory / ".digests" / shard.stem).unlink()
    else:
        shard.write_bytes(shard.read_bytes()[: 100 if damage == "cut" else 0])
    extract(llama, choices, splits=["train"], layouts=["listed"], cache=tmp_path / "killed")
    assert contents(tmp_path / "killed") == contents(tmp_path / "whole")
    assert not list(directory.glob(".*"))
    assert undisturbed.verify() == []


def interrupt(*_: object) -> None:
    raise KeyboardInterrupt


def test_every_flipped_bit_is_found(llama: Teacher, choices: Task) -> None:
    flips = int(os.environ.get("PROBEKD_TEST_FLIPS", "100"))
    stores = [s.directory for s in extract(llama, choices).stores]
    files = sorted(f for d in stores for f in d.iterdir())
    draw = random.Random(1)
    assert verify_stores() == {}
    for _ in range(flips):
        # Small files too: by file first, and not by byte.
        path = draw.choice(files)
        content = bytearray(path.read_bytes())
        at = draw.randrange(len(content))
        kept = content[at]
        content[at] ^= 1 << draw.randrange(8)
        path.write_bytes(content)
        assert verify_stores() == {path.parent.name: [path.name]}, (path.name, at)
        content[at] = kept
        path.write_bytes(content)
    assert verify_stores() == {}


@pytest.mark.slow
def test_ten_at_once_make_one_store(model_dir: ModelDir, tmp_path: Path) -> None:
    model, log = model_dir("llama"), tmp_path / "log"
    forked.finished(start(model, tmp_path / "alone", "whole", tmp_path / "other"), said(tmp_path / "other"))
    together = [start(model, tmp_path / "shared", "whole", log) for _ in range(10)]
    for process in together:
        forked.finished(process, said(log))
    assert contents(tmp_path / "shared") == contents(tmp_path / "alone")
    written = log.read_text().split()
    assert sorted(written) == sorted(set(written)), "two processes computed the same shard"


def test_collecting_keeps_what_a_run_or_a_process_holds(
    llama: Teacher, choices: Task, cache_directory: Path, tmp_path: Path
) -> None:
    from filelock import FileLock

    stores = [s.directory for s in extract(llama, choices).stores]
    link_store(StateStore.open(stores[0]), tmp_path / "run")
    (cache_directory / "locks").mkdir(exist_ok=True)
    with FileLock(cache_directory / "locks" / stores[1].name):
        removed = {s.key for s in collect(0)}
    assert removed == {d.name for d in stores[2:]}
    assert {s.key for s in list_stores()} == {d.name for d in stores[:2]}
    # The run is gone, and nobody holds the other.
    for file in (tmp_path / "run").rglob("*"):
        if file.is_file():
            file.unlink()
    assert {s.key for s in collect(0)} == {d.name for d in stores[:2]}


def test_who_waits_for_another_process_is_told(
    llama: Teacher, choices: Task, cache_directory: Path, caplog: pytest.LogCaptureFixture
) -> None:
    from filelock import FileLock

    (store,) = extract(llama, choices, splits=["train"], layouts=["listed"]).stores
    assert not caplog.messages
    shutil.rmtree(store.directory)
    held = threading.Event()

    def hold() -> None:
        with FileLock(cache_directory / "locks" / store.directory.name):
            held.set()
            time.sleep(1)

    threading.Thread(target=hold).start()
    held.wait()
    assert extract(llama, choices, splits=["train"], layouts=["listed"]).stores[0].verify() == []
    assert caplog.messages == ["choices, split train, listed: another process reads these rows; waiting for it"]


def test_a_full_disk_ends_in_a_message_and_the_next_run_goes_on(
    llama: Teacher, choices: Task, cache_directory: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from safetensors import SafetensorError

    monkeypatch.setattr("probekd.extraction.job.ROWS_AT_ONCE", 2)

    def full(*_: object, **__: object) -> None:
        raise SafetensorError("Error while serializing: I/O error: No space left on device (os error 28)")

    with monkeypatch.context() as patch:
        patch.setattr("safetensors.torch.save_file", full)
        with pytest.raises(StoreError, match=r"the disk is full.*run the same command again"):
            extract(llama, choices, splits=["train"], layouts=["listed"])
    assert [p.name for p in cache_directory.glob("states/*/*")] == [".plan.json"]
    assert extract(llama, choices, splits=["train"], layouts=["listed"]).stores[0].verify() == []


def test_a_full_disk_at_the_lock_ends_in_a_message(
    llama: Teacher, choices: Task, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object, **__: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(Path, "touch", full)
    with pytest.raises(StoreError, match=r"the disk is full.*run the same command again"):
        extract(llama, choices, splits=["train"], layouts=["listed"])


def test_what_a_killed_process_offloaded_goes_with_the_next(tmp_path: Path) -> None:
    held = OffloadFolder(tmp_path)
    left = tmp_path / "left"
    left.mkdir()
    (left / "weights.dat").write_bytes(b"weights")
    other = OffloadFolder(tmp_path)
    assert held.path.is_dir() and other.path.is_dir() and not left.exists()
    gone = held.path
    del held
    assert not gone.exists() and other.path.is_dir()
    del other
    assert list(tmp_path.iterdir()) == []
