"""The commands that take a student out of the door, from the command line to the files."""

from __future__ import annotations

import csv
import json
import shutil
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
from workspace import Workspace, workspace

from probekd import cli

SMALL = {"train": 18, "unlabelled": 6, "test": 9}
Call = Callable[..., tuple[int, str, str]]


@pytest.fixture
def call(done: Workspace, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Call:
    """Run the command line in this process; gives exit status, standard output and standard error."""
    monkeypatch.setenv("COLUMNS", "200")
    monkeypatch.setenv("PROBEKD_CACHE", str(done.root / "cache"))

    def run(*arguments: str | Path) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["probekd", *map(str, arguments)])
        capsys.readouterr()
        with pytest.raises(SystemExit) as end:
            cli.main()
        said = capsys.readouterr()
        return int(end.value.code or 0), said.out, said.err

    return run


@pytest.fixture(scope="module")
def done(tmp_path_factory: pytest.TempPathFactory, model_dir: Callable[[str], Path]) -> Iterator[Workspace]:
    """A finished tiny run and its cache."""
    from probekd.run import run_stages

    root = tmp_path_factory.mktemp("cli-students")
    made = workspace(root, "classification", teacher=model_dir("llama"), student=model_dir("bert"), sizes=SMALL)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PROBEKD_CACHE", str(root / "cache"))
        run_stages(made.load())
    yield made


def rows_of(path: Path) -> list[dict[str, str]]:
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


@pytest.mark.slow
def test_an_exported_student_answers_as_it_did(call: Call, done: Workspace, tmp_path: Path) -> None:
    pytest.importorskip("onnxruntime")
    student, test = tmp_path / "student", done.root / "test.csv"
    shutil.copytree(done.run / "student", student)
    asked = ("predict", student, "--input", test, "--output")
    status, _, err = call(*asked, tmp_path / "early.csv", "--backend", "onnx")
    assert status == 2 and "onnx" in err and not (tmp_path / "early.csv").exists()
    status, out, err = call("export", student, "--rows", test)
    assert (status, err) == (0, "") and "model.onnx: on 9 rows" in out
    status, _, err = call("export", student)
    assert status == 2 and "lies in no run directory" in err and "--rows" in err
    assert "model.onnx: on 24 rows" in call("export", done.run / "student")[1]
    shutil.rmtree(done.run / "student" / "onnx")
    said = []
    for backend in ("torch", "onnx"):
        assert call(*asked, tmp_path / f"{backend}.csv", "--backend", backend)[0] == 0
        said.append([json.loads(r["probs"]) for r in rows_of(tmp_path / f"{backend}.csv")])
    np.testing.assert_allclose(said[0], said[1], atol=1e-4)
    status, _, err = call(*asked, tmp_path / "x.csv", "--backend", "tensorrt")
    assert status == 2 and "--backend tensorrt: unknown; it is one of torch, onnx, onnx-int8" in err


def test_a_cascade_says_who_answered_and_what_it_promises(call: Call, done: Workspace, tmp_path: Path) -> None:
    out_file = tmp_path / "out.csv"
    asked = ("predict", done.run / "student", "--input", done.root / "test.csv", "--output", out_file)
    status, out, _ = call(*asked, "--cascade", done.run, "--json")
    found = json.loads(out)
    assert status == 0 and found["rows"] == 9
    # Nine rows cannot show an agreement of 0.95 with confidence 0.95: all of them go to the probe.
    assert found["answered_by"].get("probe") == 9 and "every row goes to the probe" in found["rule"]
    assert {r["answered_by"] for r in rows_of(out_file)} == {"probe"}
    status, _, err = call(*asked, "--overwrite", "--cascade", done.run, "--agreement", "1.5")
    assert status == 2 and "agreement 1.5: must lie between 0 and 1" in err


@pytest.mark.parametrize(
    ("option", "value"), [("--agreement", "0.5"), ("--confidence", "0.95"), ("--held-out", "test.csv")]
)
def test_what_only_a_cascade_can_follow_is_refused_without_one(
    call: Call, done: Workspace, tmp_path: Path, option: str, value: str
) -> None:
    out_file = tmp_path / "out.csv"
    asked = ("predict", done.run / "student", "--input", done.root / "test.csv", "--output", out_file)
    status, _, err = call(*asked, option, value)
    assert status == 2 and f"{option}: the student answers every row without --cascade" in err
    assert not out_file.exists()


def test_targets_go_out_as_a_dataset(call: Call, done: Workspace, tmp_path: Path) -> None:
    from datasets import load_dataset

    place = tmp_path / "soft"
    status, out, _ = call("label", done.path, "--export", place, "--json")
    assert status == 0 and json.loads(out)["rows"]["train"] == SMALL["train"] + SMALL["unlabelled"]
    rows = load_dataset(str(place), split="train", cache_dir=str(tmp_path / "hub"))
    assert sorted(set(rows["split"])) == ["train", "unlabelled"]
    assert all(sum(row) == pytest.approx(1) for row in rows["soft_labels"])


def test_where_a_dataset_cannot_go_is_said_before_any_work(
    call: Call, done: Workspace, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "used").mkdir()
    (tmp_path / "used" / "mine").touch()
    (tmp_path / "empty").mkdir()
    monkeypatch.chdir(tmp_path / "empty")
    assert call("label", done.path, "--export", ".")[0] == 0
    assert (tmp_path / "empty" / "data" / "train.parquet").is_file()
    monkeypatch.setattr("probekd.cli._run", lambda *args, **options: pytest.fail("the stage was run"))
    monkeypatch.chdir(tmp_path / "used")
    for place in (".", tmp_path / "used", tmp_path / "used" / "mine"):
        status, _, err = call("label", done.path, "--export", place)
        assert status == 2 and "is there already" in err


def test_a_push_under_an_impossible_name_is_refused_before_anything_is_sent(call: Call, done: Workspace) -> None:
    status, out, err = call("push", done.run / "student", "a/b/c")
    assert (status, out) == (2, "") and "a/b/c: no name for a repository" in err


CODE = """from transformers import BertConfig, BertForSequenceClassification

class MineConfig(BertConfig):
    model_type = "mine"

class Mine(BertForSequenceClassification):
    config_class = MineConfig
"""


def test_a_student_that_ships_its_code_answers_where_that_is_allowed(
    call: Call, done: Workspace, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("transformers.dynamic_module_utils.HF_MODULES_CACHE", str(tmp_path / "modules"))
    monkeypatch.syspath_prepend(tmp_path / "modules")
    student = Path(shutil.copytree(done.run / "student", tmp_path / "student"))
    (student / "mine.py").write_text(CODE)
    config = json.loads((student / "config.json").read_text())
    named = {"AutoConfig": "mine.MineConfig", "AutoModelForSequenceClassification": "mine.Mine"}
    (student / "config.json").write_text(json.dumps({**config, "model_type": "mine", "auto_map": named}))
    asked = ("predict", student, "--input", done.root / "test.csv", "--output", tmp_path / "out.csv")
    status, _, err = call(*asked)
    assert status == 2 and "allow it with --trust-remote-code" in err and not (tmp_path / "out.csv").exists()
    assert call(*asked, "--trust-remote-code")[0] == 0
    assert call(*asked, "--overwrite", "--cascade", done.run, "--trust-remote-code")[0] == 0
    pytest.importorskip("onnxruntime")
    exported = ("export", student, "--rows", done.root / "test.csv")
    assert call(*exported)[0] == 2
    assert call(*exported, "--trust-remote-code")[0] == 0
