"""What a user can get wrong: exit status 2, one message that says what, where and how to mend it, and nothing written."""

from __future__ import annotations

import errno
import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from workspace import Row, Workspace, workspace

from probekd import cli
from probekd.files import read_json, write_json

SMALL = {"train": 18, "unlabelled": 6, "test": 9}
Bend = Callable[[Workspace], None]


@pytest.fixture
def make(tmp_path: Path, model_dir: Callable[[str], Path]) -> Callable[..., Workspace]:
    def make(kind: str = "classification", **changes: Any) -> Workspace:
        models = {"teacher": model_dir("llama"), "student": model_dir("bert")}
        return workspace(tmp_path / "w", kind, **models, sizes=SMALL, **changes)

    return make


@pytest.fixture
def call(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Callable[..., tuple[int, str]]:
    """Run the command line in this process; gives the exit status and what it wrote to standard error."""

    def call(*arguments: str | Path) -> tuple[int, str]:
        monkeypatch.setattr(sys, "argv", ["probekd", *map(str, arguments)])
        capsys.readouterr()
        with pytest.raises(SystemExit) as end:
            cli.main()
        return int(end.value.code or 0), capsys.readouterr().err

    return call


def files(root: Path) -> dict[Path, bytes]:
    return {f: f.read_bytes() for f in root.rglob("*") if f.is_file() and f.name != ".lock"}


def assert_refused(result: tuple[int, str], *expected: str) -> None:
    status, said = result
    assert status == 2, said
    assert "Traceback" not in said
    before, _, _ = said.partition("error: ")
    assert said.count("error: ") == 1, said
    assert all(" done " in line for line in before.splitlines()), said  # stages that were finished first
    for text in expected:
        assert text in said, f"{text!r} is not in: {said}"


def each(split: str, **values: Any) -> Bend:
    """Set fields of every row of a split."""
    return lambda w: [row.update(values) for row in w.rows[split]] and None


def row_of(split: str, number: int, **values: Any) -> Bend:
    """Set fields of one row; None as a value removes the field."""

    def bend(w: Workspace) -> None:
        row: Row = w.rows[split][number]
        row.update(values)
        for name in [name for name, value in row.items() if value is None]:
            del row[name]

    return bend


def setting(section: str, **values: Any) -> Bend:
    return lambda w: w.config.setdefault(section, {}).update(values)


def break_line(w: Workspace) -> None:
    w.raw["train"] = "".join(json.dumps(row) + "\n" for row in w.rows["train"][:2]) + '{"question": "cut off\n'


def missing_file(w: Workspace) -> None:
    w.task["data"]["test"] = "nowhere.jsonl"
    del w.rows["test"]


def same_id(w: Workspace) -> None:
    w.rows["test"][3]["id"] = w.rows["train"][1]["id"]


def overlapping(w: Workspace) -> None:
    """Two of the training rows ask what test rows ask, but for case and white space."""
    for i in (0, 1):
        w.rows["train"][i]["question"] = "  " + w.rows["test"][i]["question"].upper()


def overlapping_is_an_error(w: Workspace) -> None:
    overlapping(w)
    w.config["task"]["on_overlap"] = "error"


def empty_split(w: Workspace) -> None:
    w.rows["test"].clear()


def hardly_two_alike(w: Workspace) -> None:
    for i, row in enumerate(w.rows["train"][4:]):
        row["answer"] = f"kind {i}"


def no_such_class(w: Workspace) -> None:
    w.task["labels"] = ["animal", "food", "tool"]
    w.rows["train"][2]["answer"] = "toool"


def no_model(w: Workspace) -> None:
    (w.root / "empty").mkdir(parents=True)
    w.config["teacher"]["model"] = str(w.root / "empty")


def no_student(w: Workspace) -> None:
    w.config["student"]["model"] = str(w.root / "not" / "there")


BAD: dict[str, tuple[str, Bend, tuple[str, ...]]] = {
    "unknown key": ("classification", setting("student", epoch=3), ("cfg.yaml", "student.epoch", "'epochs'")),
    "unknown top-level key": ("classification", setting("probes"), ("cfg.yaml", "'probes'", "'probe'")),
    "value out of range": ("classification", setting("probe", folds=2), ("cfg.yaml", "probe.folds", "3", "found 2")),
    "missing data file": ("multiple_choice", missing_file, ("nowhere.jsonl", "no such file")),
    "malformed line": ("multiple_choice", break_line, ("train.jsonl:3", "not valid JSON", "one object")),
    "no question": (
        "multiple_choice",
        row_of("train", 4, question=None),
        ("train.jsonl:5", "no column 'question'", "columns"),
    ),
    "empty question": ("multiple_choice", row_of("test", 0, question=" "), ("test.jsonl:1", "question is empty")),
    "answer outside the options": (
        "multiple_choice",
        row_of("train", 1, answer=7),
        ("train.jsonl:2", "answer 7", "options", "counted from 0"),
    ),
    "one option": ("multiple_choice", row_of("train", 2, options=["a"], answer=0), ("train.jsonl:3", "2 to 10")),
    "equal options": (
        "multiple_choice",
        row_of("test", 2, options=["a", "b", "a"], answer=0),
        ("test.jsonl:3", "'a' occurs twice", "mend"),
    ),
    "a number as question": (
        "multiple_choice",
        row_of("train", 0, question=5),
        ("train.jsonl:1", "expected text", "5"),
    ),
    "a number as option": (
        "multiple_choice",
        row_of("train", 0, options=["a", 2, "c"]),
        ("train.jsonl:1", "options[1]", "expected text"),
    ),
    "label not in the set": ("classification", no_such_class, ("train.csv:4", "'toool'", "did you mean 'tool'")),
    "empty split": ("classification", empty_split, ("task.yaml", "split test has no rows", "test.csv")),
    "no answers at all": ("classification", each("train", answer=""), ("task.yaml", "no row of train has an answer")),
    "too few labels": (
        "classification",
        setting("task", labels=5),
        ("5 labelled rows are too few for 3 folds", "task.labels", "probe.folds"),
    ),
    "more labels than rows": ("classification", setting("task", labels=99), ("99 labels", "18", "lower task.labels")),
    "hardly two rows of one class": (
        "classification",
        hardly_two_alike,
        ("the 2 of 18 labelled rows that share their label", "too few for 3 folds", "probe.folds"),
    ),
    "two rows with one id": ("multiple_choice", same_id, ("test.jsonl:4", "'train-1'", "train.jsonl:2", "unique")),
    "overlap": ("multiple_choice", overlapping_is_an_error, ("2 train rows recur", "train-0", "task.on_overlap")),
    "unknown task": (
        "classification",
        setting("task", name="wordnet_kind"),
        ("'wordnet_kind'", "did you mean 'wordnet_kinds'"),
    ),
    "directory that is no model": ("classification", no_model, ("empty", "config.json is missing")),
    "student that is not there": ("classification", no_student, ("there", "no such model directory")),
}


@pytest.mark.parametrize(("kind", "bend", "expected"), BAD.values(), ids=list(BAD))
def test_bad_input_is_refused_before_anything_is_written(
    make: Callable[..., Workspace],
    call: Callable[..., tuple[int, str]],
    kind: str,
    bend: Bend,
    expected: tuple[str, ...],
) -> None:
    w = make(kind)
    bend(w)
    before = files(w.write().parent)
    assert_refused(call("run", w.path), *expected)
    assert files(w.root) == before
    assert not (w.root / "runs" / "cfg").exists()


def test_a_config_that_is_not_there(call: Callable[..., tuple[int, str]], tmp_path: Path) -> None:
    assert_refused(call("run", tmp_path / "no.yaml"), str(tmp_path / "no.yaml"), "no such file")


def test_a_config_that_is_not_yaml(call: Callable[..., tuple[int, str]], tmp_path: Path) -> None:
    (tmp_path / "bad.yaml").write_text("task: a\nteacher: [x\n")
    assert_refused(call("run", tmp_path / "bad.yaml"), "bad.yaml:3", "not valid YAML")


def test_overlapping_rows_are_dropped_with_a_note(
    make: Callable[..., Workspace], call: Callable[..., tuple[int, str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    w = make("multiple_choice")
    overlapping(w)
    monkeypatch.setattr(sys, "argv", ["probekd", "extract", str(w.write())])
    with pytest.raises(SystemExit) as end:
        cli.main()
    assert end.value.code in (None, 0)
    record = read_json(w.run / "run.json")
    assert [n for n in record["notes"] if "2 train rows recur" in n and "train-0, train-1" in n and "left out" in n]
    ids = [i for d in (w.run / "states").iterdir() for i in _index(d)]
    assert {"train-0", "train-1"}.isdisjoint(ids) and "train-2" in ids


def _index(store: Path) -> list[str]:
    import pyarrow.parquet as pq

    return pq.read_table(store / "index.parquet")["id"].to_pylist()  # type: ignore[no-any-return]


def too_long(w: Workspace) -> None:
    w.rows["unlabelled"][2]["question"] = "zq " * 150


def test_a_prompt_longer_than_the_context_is_named(
    make: Callable[..., Workspace], call: Callable[..., tuple[int, str]]
) -> None:
    w = make()
    too_long(w)
    assert_refused(call("run", w.write()), "'unlabelled-2'", "tokens", "256", "on_long: drop")
    assert not [f for f in w.run.rglob("*") if f.is_file() and f.name not in ("config.yaml", "run.json", ".lock")]


def test_a_prompt_longer_than_the_context_is_dropped_on_demand(
    make: Callable[..., Workspace], call: Callable[..., tuple[int, str]]
) -> None:
    import pyarrow.parquet as pq

    w = make()
    too_long(w)
    w.config["teacher"]["on_long"] = "drop"
    w.write()
    for stage in ("extract", "probe", "label"):
        status, said = call(stage, w.path)
        assert status == 0, said
    assert [n for n in read_json(w.run / "run.json")["notes"] if n.startswith("1 rows were dropped")]
    ids = pq.read_table(w.run / "targets.parquet")["id"].to_pylist()
    assert "unlabelled-2" not in ids and len(ids) == SMALL["train"] + SMALL["unlabelled"] - 1


def test_states_that_are_not_finite(
    make: Callable[..., Workspace], call: Callable[..., tuple[int, str]], tmp_path: Path
) -> None:
    import shutil

    w = make()
    broken = Path(shutil.copytree(w.config["teacher"]["model"], tmp_path / "broken"))
    weights = load_file(broken / "model.safetensors")
    weights["model.layers.1.mlp.down_proj.weight"] = torch.full_like(
        weights["model.layers.1.mlp.down_proj.weight"], float("inf")
    )
    save_file(weights, broken / "model.safetensors", metadata={"format": "pt"})
    w.config["teacher"]["model"] = str(broken)
    assert_refused(call("run", w.write()), "depth 2", "not finite", "row 'train-", "check its weights")
    assert not list(w.run.rglob("*.parquet")) and not list(w.root.rglob("*.tmp"))


@pytest.mark.parametrize("victim", ["manifest.json", "probe.json", "targets.parquet", "predictions.parquet"])
def test_a_full_disk(
    make: Callable[..., Workspace],
    call: Callable[..., tuple[int, str]],
    monkeypatch: pytest.MonkeyPatch,
    cache_directory: Path,
    victim: str,
) -> None:
    """The disk fills while one file is written; with space again the same command goes on."""
    import os

    w = make()
    w.config["student"]["baselines"] = []
    replace = os.replace

    def full(source: str | Path, target: str | Path, **options: Any) -> None:
        name = Path(target).name
        if name == victim or (Path(source) / victim).is_file():
            raise OSError(errno.ENOSPC, "No space left on device")
        replace(source, target, **options)

    with monkeypatch.context() as patch:
        patch.setattr(os, "replace", full)
        assert_refused(
            call("run", w.write()), "disk is full", str(cache_directory if victim == "manifest.json" else w.run)
        )
    assert not list(w.root.rglob("*.tmp")) and not list(cache_directory.rglob("*.tmp"))
    assert not list(w.run.rglob(victim))
    status, said = call("run", w.path)
    assert status == 0, said
    assert (w.run / "report.html").is_file()


def test_a_cache_of_another_version(
    make: Callable[..., Workspace], call: Callable[..., tuple[int, str]], cache_directory: Path
) -> None:
    w = make()
    assert call("extract", w.write())[0] == 0
    manifests = list(cache_directory.glob("states/*/manifest.json"))
    assert manifests
    for path in manifests:
        write_json(path, {**read_json(path), "format": 99})
    other = call("extract", w.path, "--set", "name=other")
    assert_refused(other, str(cache_directory / "states"), "another version (format 99", "remove it")
    assert not list((w.root / "runs" / "other").rglob("*.parquet"))


def test_a_run_of_another_version(make: Callable[..., Workspace], call: Callable[..., tuple[int, str]]) -> None:
    w = make()
    assert call("extract", w.write())[0] == 0
    write_json(w.run / "run.json", {**read_json(w.run / "run.json"), "format": 99})
    before = files(w.run)
    assert_refused(call("run", w.path), str(w.run), "another version (format 99", "new name")
    assert files(w.run) == before


def test_a_run_of_another_config(make: Callable[..., Workspace], call: Callable[..., tuple[int, str]]) -> None:
    w = make()
    assert call("extract", w.write())[0] == 0
    before = files(w.run)
    result = call("run", w.path, "--set", "seed=1", "--set", "student.epochs=9")
    assert_refused(result, str(w.run), "seed: 0 -> 1", "student.epochs: 1.0 -> 9.0", "--resume", "--set name=")
    assert files(w.run) == before


def test_a_directory_that_is_not_a_run(make: Callable[..., Workspace], call: Callable[..., tuple[int, str]]) -> None:
    w = make()
    w.write()
    w.run.mkdir(parents=True)
    (w.run / "thesis.txt").write_text("mine")
    assert_refused(call("run", w.path), str(w.run), "not a run directory", "--set name=")
    assert files(w.run) == {w.run / "thesis.txt": b"mine"}


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (("cache", "gc", "--keep", "lots"), ("'lots'", "20GB")),
        (("tasks", "wordnet_kid"), ("'wordnet_kid'", "did you mean 'wordnet_kinds'")),
        (("predict", "nowhere", "--input", "a.csv", "--output", "b.csv"), ("nowhere",)),
    ],
)
def test_other_verbs_refuse_too(
    call: Callable[..., tuple[int, str]],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    arguments: tuple[str, ...],
    expected: tuple[str, ...],
) -> None:
    monkeypatch.chdir(tmp_path)
    assert_refused(call(*arguments), *expected)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("override", ["student.epochs", "=3", "runs_dir.x=1", "task.labels=[1"])
def test_overrides_that_cannot_be_applied(
    make: Callable[..., Workspace], call: Callable[..., tuple[int, str]], override: str
) -> None:
    assert_refused(call("run", make().write(), "--set", override), f"--set {override}")
