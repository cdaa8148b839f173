from __future__ import annotations

import os
import time
from pathlib import Path

import pytest

from probekd.cache import collect, list_stores, parse_size, print_stores, verify_stores
from probekd.errors import ConfigError
from probekd.extraction import extract
from probekd.states import StateStore
from probekd.tasks.base import Task
from probekd.teacher.load import Teacher

HOUR = 3600


@pytest.fixture
def stores(llama: Teacher, choices: Task, cache_directory: Path) -> list[Path]:
    """Directories of four stores (two splits, two layouts), the first used longest ago."""
    found = [store.directory for store in extract(llama, choices).stores]
    for age, directory in zip(range(len(found), 0, -1), found, strict=True):
        touch(directory, time.time() - age * HOUR)
    assert len(found) == 4
    return found


def touch(directory: Path, moment: float) -> None:
    for file in directory.iterdir():
        os.utime(file, (moment, moment))


def size(directory: Path) -> int:
    return sum(f.stat().st_size for f in directory.iterdir())


def test_an_empty_cache_has_no_stores(cache_directory: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert list_stores() == [] and verify_stores() == {} and collect(0) == []
    print_stores([])
    assert "the cache is empty" in capsys.readouterr().out


def test_stores_are_listed_least_recently_used_first(stores: list[Path], llama: Teacher) -> None:
    listed = list_stores()
    assert [s.key for s in listed] == [d.name for d in stores]
    assert [s.bytes for s in listed] == [size(d) for d in stores]
    assert {(s.split, s.layout, s.rows) for s in listed} == {
        (split, layout, rows) for split, rows in (("train", 4), ("test", 1)) for layout in ("listed", "branched")
    }
    assert {(s.task, s.teacher, s.finished) for s in listed} == {("choices", llama.name, True)}


def test_the_table_shows_every_store(stores: list[Path], capsys: pytest.CaptureFixture[str]) -> None:
    print_stores(list_stores())
    said = capsys.readouterr().out
    assert all(d.name[:6] in said for d in stores)


@pytest.mark.parametrize("file", ["shard-00000.safetensors", "index.parquet"])
def test_one_flipped_bit_is_found(stores: list[Path], file: str) -> None:
    assert verify_stores() == {}
    path = stores[1] / file
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)
    assert verify_stores() == {stores[1].name: [file]}


def test_a_broken_manifest_is_found(stores: list[Path]) -> None:
    (stores[2] / "manifest.json").write_text("{")
    assert verify_stores() == {stores[2].name: ["manifest.json"]}
    assert [s.finished for s in list_stores() if s.key == stores[2].name] == [False]


def test_collecting_removes_the_least_recently_used_until_the_rest_fits(stores: list[Path]) -> None:
    keep = size(stores[2]) + size(stores[3])
    assert [s.key for s in collect(keep)] == [d.name for d in stores[:2]]
    assert [d.exists() for d in stores] == [False, False, True, True]
    assert collect(keep) == []
    assert len(collect(keep - 1)) == 1


def test_an_unfinished_store_is_collected_only_when_it_is_old(stores: list[Path]) -> None:
    for directory in stores[:2]:
        (directory / "manifest.json").unlink()
    touch(stores[0], time.time() - 25 * HOUR)
    assert {s.key for s in collect(0)} == {stores[0].name, stores[2].name, stores[3].name}
    assert [d.exists() for d in stores] == [False, True, False, False]


def test_what_a_run_linked_outlives_the_cache(stores: list[Path], tmp_path: Path) -> None:
    from probekd.states import link_store

    mine = link_store(StateStore.open(stores[0]), tmp_path / "states")
    before = mine.read(mine.positions[0], 1, [0])
    collect(0)
    assert mine.verify() == []
    assert (mine.read(mine.positions[0], 1, [0]) == before).all()


@pytest.mark.parametrize(
    ("text", "size"),
    [("0", 0), ("512", 512), ("20GB", 20 * 10**9), ("1.5 mb", 1_500_000), ("3k", 3000), (" 2T ", 2 * 10**12)],
)
def test_sizes(text: str, size: int) -> None:
    assert parse_size(text) == size


@pytest.mark.parametrize("text", ["", "lots", "-1", "5 PB", "1e9", "GB"])
def test_what_is_no_size_is_refused(text: str) -> None:
    with pytest.raises(ConfigError, match="is not a size; write something like 20GB"):
        parse_size(text)


def test_what_is_used_again_was_used_last_and_reading_a_file_is_no_use(
    stores: list[Path], llama: Teacher, choices: Task
) -> None:
    """By the manifest's date alone: file systems date an access to a file once a day, or never."""
    extract(llama, choices, splits=["train"], layouts=["listed"])
    manifests = {d: StateStore.open(d).manifest for d in stores}
    again = next(d for d, m in manifests.items() if (m["split"], m["layout"]) == ("train", "listed"))
    assert verify_stores() == {}
    assert [s.key for s in list_stores()] == [d.name for d in stores if d != again] + [again.name]


def test_a_store_that_is_claimed_when_it_is_there_outlives_the_next_ones_reading(
    llama: Teacher, choices: Task, cache_directory: Path, tmp_path: Path
) -> None:
    """A run links each store as soon as it is read, since the next may take hours."""
    from probekd.states import link_store

    linked: list[str] = []

    def claim(store: StateStore) -> StateStore:
        mine = link_store(store, tmp_path / "states")
        linked.append(mine.directory.name)
        assert collect(0) == [], "what a run has claimed stays"
        return mine

    states = extract(llama, choices, claim=claim)
    assert [s.directory for s in states.stores] == [tmp_path / "states" / name for name in linked]
    assert len(linked) == 4


def test_stores_that_vanish_while_they_are_listed(stores: list[Path], monkeypatch: pytest.MonkeyPatch) -> None:
    import shutil

    from probekd import cache

    walk = cache._sizes_and_times

    def vanishing(directory: Path) -> object:
        if directory == stores[1]:
            shutil.rmtree(directory)
        return walk(directory)

    monkeypatch.setattr(cache, "_sizes_and_times", vanishing)
    assert [s.key for s in list_stores()] == [d.name for d in stores if d != stores[1]]
