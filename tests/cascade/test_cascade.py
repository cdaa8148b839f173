"""The cascade on tiny runs: who answers, with what, and what the teacher is made to read."""

from __future__ import annotations

import json
import shutil
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
from workspace import Workspace, workspace

from probekd.cascade.held_out import held_out_rows, sample
from probekd.cascade.predict import Rule, cascade_file
from probekd.cascade.teacher import ProbedTeacher, open_run
from probekd.cascade.threshold import Threshold
from probekd.errors import ConfigError, DataError, StoreError
from probekd.run import run_stages
from probekd.student import predict_file
from probekd.targets import softmax
from probekd.tasks.base import Example

SIZES = {"train": 24, "unlabelled": 6, "validation": 60, "test": 30}


@pytest.fixture(scope="module")
def done(
    tmp_path_factory: pytest.TempPathFactory, model_dir: Callable[[str], Path]
) -> Iterator[Callable[[str], Workspace]]:
    """A finished run of a kind of task."""

    def make(kind: str) -> Workspace:
        root = tmp_path_factory.mktemp(kind)
        made = workspace(root, kind, teacher=model_dir("llama"), student=model_dir("bert"), sizes=SIZES)
        made.config["student"]["baselines"] = []
        with pytest.MonkeyPatch.context() as patch:
            patch.setenv("PROBEKD_CACHE", str(root / "cache"))
            run_stages(made.load())
        return made

    yield cache(make)


def read(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def spoken_by_the_probe(made: Workspace) -> dict[str, np.ndarray]:
    """What the run's own evaluation says of the test rows."""
    rows = pq.read_table(made.run / "predictions.parquet").to_pylist()
    return {r["id"]: np.array(r["probs"]) for r in rows if (r["who"], r["split"]) == ("probe", "test")}


@pytest.mark.parametrize("kind", ["classification", "multiple_choice"])
def test_each_row_has_the_answer_of_the_one_who_gave_it(
    done: Callable[[str], Workspace], kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = done(kind)
    suffix = "csv" if kind == "classification" else "jsonl"
    source, out, plain = made.root / f"test.{suffix}", tmp_path / "out.jsonl", tmp_path / "plain.jsonl"
    asked: list[str] = []
    predict_once = ProbedTeacher.predict_once

    def spy(self: ProbedTeacher, examples: list[Example]) -> list[np.ndarray]:
        asked.extend(e.question for e in examples)
        return predict_once(self, examples)

    monkeypatch.setattr(ProbedTeacher, "predict_once", spy)
    # A tiny random student agrees by luck, and what luck finds is tested elsewhere: here the surer half answers.
    monkeypatch.setattr(
        "probekd.cascade.predict.choose_threshold",
        lambda confidence, agrees, **asked: Threshold(
            confidence=float(np.median(confidence)), kept=1, agreed=1, rows=len(confidence), **asked
        ),
    )
    rule, by = cascade_file(made.run / "student", made.run, source, out, batch_rows=7, overwrite=True)
    assert 0 < by["student"] < 30
    assert rule.threshold is not None and rule.source == "the validation split"
    predict_file(made.run / "student", source, plain)
    rows, probed = read(out), spoken_by_the_probe(made)
    assert Counter(row["answered_by"] for row in rows) == by
    for row, alone in zip(rows, read(plain), strict=True):
        by_student = alone["confidence"] > rule.threshold.confidence
        assert row["answered_by"] == ("student" if by_student else "probe")
        assert (row["question"] in asked[-by["probe"] :]) == (not by_student)
        np.testing.assert_allclose(row["probs"], alone["probs"] if by_student else probed[row["id"]], atol=1e-4)
        assert row["prediction_index"] == int(np.argmax(row["probs"]))
    assert len(asked[-by["probe"] :]) == by["probe"]


def test_without_a_threshold_the_probe_answers_all(done: Callable[[str], Workspace], tmp_path: Path) -> None:
    made, out = done("classification"), tmp_path / "out.csv"
    rule, by = cascade_file(made.run / "student", made.run, made.root / "test.csv", out, agreement=0.99)
    assert (rule.threshold, by) == (None, Counter(probe=30, student=0))
    assert str(rule) == (
        "every row goes to the probe: 60 rows of the validation split do not show an agreement with the probe of at least "
        "0.99, with confidence 0.95: 299 are the fewest"
    )
    assert out.read_text().count(",probe\n") + out.read_text().count(",probe\r\n") == 30


def test_the_teacher_is_loaded_as_deep_as_the_probe_reads_and_leaves_nothing_behind(
    done: Callable[[str], Workspace], cache_directory: Path
) -> None:
    run = open_run(done("classification").run)
    deepest = max(depth for _, depths in run.probe.needs.values() for depth in depths)
    fits = {depth: fit for fits in run.probe.fits for depth, fit in fits.items()}
    shallow = replace(run.probe, fits=({1: fits[deepest]},), readers=run.probe.readers[:1], weights=(1.0,), words={})
    run.__dict__["probe"] = shallow
    teacher = ProbedTeacher.open(run)
    assert (len(teacher.teacher.blocks), teacher.teacher.depths) == (1, 3)
    rows = run.task.rows("test")
    once = teacher.predict_once(rows)
    assert not (cache_directory / "states").exists()
    assert not [f for f in Path(teacher._scratch.name).rglob("*.safetensors")]
    for p, q in zip(once, teacher.predict_proba(rows), strict=True):
        np.testing.assert_allclose(p, q, atol=1e-6)
    assert (cache_directory / "states").exists()


@pytest.mark.parametrize(
    ("kind", "words"), [("classification", "label_token"), ("multiple_choice", "option_likelihood, per token")]
)
def test_a_probe_that_listens_to_words_gets_the_whole_teacher(
    done: Callable[[str], Workspace], kind: str, words: str
) -> None:
    run = open_run(done(kind).run)
    run.__dict__["probe"] = replace(run.probe, words={words: 0.7})
    teacher = ProbedTeacher.open(run)
    assert teacher.teacher.whole
    rows = run.task.rows("test")
    expected = run.probe.logits(run.read_chosen(("test",), said=()), [e.id for e in rows])
    silent = replace(run.probe, words={}).logits(run.read_chosen(("test",), said=()), [e.id for e in rows])
    assert any(not np.allclose(p, q, atol=1e-3) for p, q in zip(expected, silent, strict=True))
    for probs, logits in zip(teacher.predict_once(rows), expected, strict=True):
        np.testing.assert_allclose(probs, softmax(logits), atol=1e-5)


def test_where_held_out_rows_come_from(done: Callable[[str], Workspace]) -> None:
    task = open_run(done("classification").run).task
    named, rows = task.rows("test")[:3], [*task.rows("test")] * 40
    assert held_out_rows(task, named, rows).rows == tuple(named)
    found = held_out_rows(task, None, rows)
    assert (found.rows, found.source) == (tuple(task.rows("validation")), "the validation split")
    bare = replace(task, splits={name: rows for name, rows in task.splits.items() if name != "validation"})
    found = held_out_rows(bare, None, iter(rows))
    assert len(found.rows) == 500 and "sample of the input" in found.source
    assert held_out_rows(bare, None, iter(rows)).rows == found.rows


def test_a_sample_of_a_stream_is_even() -> None:
    rows = [Example(id=str(i), question="q", options=("a", "b")) for i in range(20)]
    counts = Counter(e.id for seed in range(2000) for e in sample(rows, 5, seed))
    assert len(counts) == 20 and sum(counts.values()) == 10_000
    # 500 each; five standard deviations of a binomial count.
    assert all(abs(n - 500) < 100 for n in counts.values())
    assert sample(rows, 30, 0) == rows


def test_a_held_out_file_is_read_like_the_input(done: Callable[[str], Workspace], tmp_path: Path) -> None:
    made = done("classification")
    held = tmp_path / "held.csv"
    shutil.copy(made.root / "validation.csv", held)
    arguments = (made.run / "student", made.run, made.root / "test.csv")
    rule, _ = cascade_file(*arguments, tmp_path / "a.csv", agreement=0.2, held_out=held)
    plain, _ = cascade_file(*arguments, tmp_path / "b.csv", agreement=0.2)
    assert rule == replace(plain, source="the held-out file")


def test_what_cannot_be_a_cascade_is_refused(done: Callable[[str], Workspace], tmp_path: Path) -> None:
    made, other = done("classification"), done("multiple_choice")
    student, source, out = made.run / "student", made.root / "test.csv", tmp_path / "out.csv"
    with pytest.raises(StoreError, match=r"not a run directory.*name one under runs/"):
        cascade_file(student, tmp_path, source, out)
    for bad in (0, 1, 95):
        with pytest.raises(ConfigError, match=f"agreement {bad}: must lie between 0 and 1"):
            cascade_file(student, made.run, source, out, agreement=bad)
    with pytest.raises(ConfigError, match=r"the probe of .* is of tiny; they must be of one task"):
        cascade_file(student, other.run, source, out)
    # Rows of two multiple-choice tasks look alike, and their probes read other things.
    stranger = Path(shutil.copytree(student, tmp_path / "stranger"))
    info = json.loads((stranger / "probekd.json").read_text())
    (stranger / "probekd.json").write_text(json.dumps({**info, "task": "another"}))
    with pytest.raises(ConfigError, match=r"a student of the task another, and the probe of .* is of tiny"):
        cascade_file(stranger, made.run, source, out)
    shutil.copytree(made.run, tmp_path / "runs" / "cfg", ignore=shutil.ignore_patterns("states", "student"))
    record = json.loads((tmp_path / "runs/cfg/run.json").read_text())
    del record["stages"]["probe"]
    (tmp_path / "runs/cfg/run.json").write_text(json.dumps(record))
    with pytest.raises(StoreError, match="its probe is not fitted yet; run  probekd probe"):
        cascade_file(student, tmp_path / "runs" / "cfg", source, out)
    long = tmp_path / "long.csv"
    long.write_text("question\n" + "the cow " * 300 + "\n")
    with pytest.raises(DataError, match=rf"row '{long}:2'.*the teacher's context"):
        cascade_file(student, made.run, long, out, agreement=0.99)
    assert not out.exists()


def test_a_rule_says_what_it_promises() -> None:
    rule = Rule(threshold=None, agreement=0.9, level=0.95, rows=400, source="the held-out file")
    assert str(rule).endswith("with confidence 0.95: not even where the student is most sure")
