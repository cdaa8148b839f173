from __future__ import annotations

import errno
import hashlib
import os
from pathlib import Path

import pytest

from probekd.errors import StoreError
from probekd.files import cache_dir, file_digest, read_json, replacing, write_json, write_text


def test_a_file_takes_its_place(tmp_path: Path) -> None:
    write_text(tmp_path / "deep" / "a.txt", "é\n")
    write_text(tmp_path / "deep" / "a.txt", "new")
    assert [p.name for p in (tmp_path / "deep").iterdir()] == ["a.txt"]
    assert (tmp_path / "deep" / "a.txt").read_bytes() == b"new"


def test_a_directory_takes_the_place_of_another(tmp_path: Path) -> None:
    target = tmp_path / "d"
    for name in ("one", "two"):
        with replacing(target) as temporary:
            temporary.mkdir()
            (temporary / name).write_text("x")
    assert [p.name for p in target.iterdir()] == ["two"]
    assert list(tmp_path.iterdir()) == [target]


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt, OSError])
@pytest.mark.parametrize("directory", [False, True])
def test_nothing_is_left_half_written(tmp_path: Path, error: type[BaseException], directory: bool) -> None:
    target = tmp_path / "a"
    target.write_text("old")

    def write() -> None:
        with replacing(target) as temporary:
            if directory:
                temporary.mkdir()
            (temporary / "x" if directory else temporary).write_text("half")
            assert target.read_text() == "old"
            raise error

    with pytest.raises(error):
        write()
    assert list(tmp_path.iterdir()) == [target]
    assert target.read_text() == "old"


@pytest.mark.parametrize(
    ("code", "message"),
    [(errno.ENOSPC, "the disk is full"), (errno.EDQUOT, "the disk is full"), (errno.EACCES, "may not be written")],
)
def test_a_disk_that_refuses(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, code: int, message: str) -> None:
    target = tmp_path / "a.json"
    target.write_text("old")
    written = Path.write_text

    def refuse(self: Path, data: str, **options: str) -> int:
        written(self, data[:3], **options)
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr(Path, "write_text", refuse)
    with pytest.raises(StoreError, match=message) as caught:
        write_json(target, {"a": 1})
    assert str(target) in str(caught.value)
    assert list(tmp_path.iterdir()) == [target]
    assert target.read_text() == "old"


def test_a_rename_onto_a_full_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "replace", refuse)
    with pytest.raises(StoreError, match="run the same command again"):
        write_text(tmp_path / "a", "x")
    assert list(tmp_path.iterdir()) == []


def test_json_round_trip(tmp_path: Path) -> None:
    value = {"a": [1, 2.5, None, "é"], "b": {}}
    write_json(tmp_path / "a.json", value)
    assert read_json(tmp_path / "a.json") == value


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_json_has_no_nan(tmp_path: Path, value: float) -> None:
    with pytest.raises(ValueError, match="JSON compliant"):
        write_json(tmp_path / "a.json", [value])
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("content", [b'{"a": ', b"\xff\xfe", b""])
def test_damaged_json(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "a.json").write_bytes(content)
    with pytest.raises(StoreError, match=r"a\.json is damaged"):
        read_json(tmp_path / "a.json")


def test_missing_json(tmp_path: Path) -> None:
    with pytest.raises(StoreError, match="no such file"):
        read_json(tmp_path / "a.json")


def test_digest_is_sha256(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(b"abc" * 10**6)
    assert file_digest(tmp_path / "a") == hashlib.sha256(b"abc" * 10**6).hexdigest()


def test_a_cache_that_is_a_file_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").write_text("not a directory")
    monkeypatch.setenv("PROBEKD_CACHE", str(tmp_path / "file"))
    with pytest.raises(StoreError, match=r"is a file, and the cache is a directory; set PROBEKD_CACHE"):
        cache_dir()
