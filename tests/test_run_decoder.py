"""A whole run whose student is a decoder that answers in words."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from workspace import SIZES, Workspace, workspace

from probekd import cli
from probekd.errors import DataError
from probekd.run import run_stages

Dir = Callable[[str], Path]


def decoder_run(root: Path, model_dir: Dir, **student: object) -> Workspace:
    made = workspace(
        root, "multiple_choice", teacher=model_dir("llama"), student=model_dir("qwen2"), sizes={**SIZES, "test": 12}
    )
    made.config["student"] |= {"kind": "label_token", "max_length": 128, "baselines": ["labels"], **student}
    return made


def test_a_decoder_goes_through_every_stage_and_through_lm_eval(
    tmp_path: Path, model_dir: Dir, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("lm_eval")
    made = decoder_run(tmp_path, model_dir, lora={"rank": 4})
    run_stages(made.load())
    assert not list(made.run.rglob("adapter*"))
    predicted = pq.read_table(made.run / "predictions.parquet").to_pylist()
    mine = {row["id"]: row["probs"] for row in predicted if row["who"] == "student"}
    picked = [max(range(len(p)), key=p.__getitem__) for p in mine.values()]

    def call(*options: str) -> str:
        monkeypatch.setattr(sys, "argv", ["probekd", "evaluate", str(made.run), "--harness", *options])
        capsys.readouterr()
        with pytest.raises(SystemExit) as end:
            cli.main()
        assert not end.value.code
        return capsys.readouterr().out

    found = json.loads(call("--json"))["test"]
    answers = {row["id"]: row["answer"] for row in made.rows["test"]}
    right = sum(pick == answers[row] for row, pick in zip(mine, picked, strict=True))
    assert found == {"n": 12, "metric": "acc", "harness": right / 12, "accuracy": right / 12, "differ": []}
    monkeypatch.setenv("COLUMNS", "200")
    assert f"test 12 rows: lm-eval acc {right / 12:.4f}, probekd accuracy {right / 12:.4f}; the same pick" in call()


def test_a_row_that_does_not_fit_the_student_ends_the_run_before_it_reads_the_teacher(
    tmp_path: Path, model_dir: Dir
) -> None:
    made = decoder_run(tmp_path, model_dir)
    made.rows["test"][3]["question"] += " red" * 120
    with pytest.raises(DataError, match=r"row 'test-3': its prompt has \d+ tokens and the student reads 128"):
        run_stages(made.load())
    assert not list((made.run / "states").glob("*"))
