"""A run that trains a student by every method there is, and what each of them was told."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from workspace import Workspace, workspace

from probekd.errors import ConfigError
from probekd.methods import RECIPES
from probekd.run import run_stages, scores_of
from probekd.student import Student
from probekd.supervision import place_of_targets, students_of
from probekd.targets import SoftTargets

SIZES = {"train": 24, "unlabelled": 12, "test": 12}
SHARED = Path(os.environ.get("PROBEKD_SHARED", Path(__file__).parents[2] / "shared"))


@pytest.fixture(scope="module")
def everything(
    tmp_path_factory: pytest.TempPathFactory, model_dir: Callable[[str], Path]
) -> Iterator[Callable[[str], Workspace]]:
    """A finished run of a kind of task, with every method as a baseline."""

    def make(kind: str) -> Workspace:
        root = tmp_path_factory.mktemp(kind)
        made = workspace(root, kind, teacher=model_dir("llama"), student=model_dir("bert"), sizes=SIZES)
        made.config["student"] |= {"method": "blend-kd", "baselines": list(RECIPES), "early_stopping": None}
        made.config["probe"] |= {"depths": [1, 2], "stack": False, "windows": [1]}
        with pytest.MonkeyPatch.context() as patch:
            patch.setenv("PROBEKD_CACHE", str(root / "cache"))
            run_stages(made.load())
        return made

    yield cache(make)


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["classification", "multiple_choice"])
def test_every_method_trains_a_student_and_the_contract_holds(
    everything: Callable[[str], Workspace], kind: str
) -> None:
    made = everything(kind)
    assert set(scores_of(made.run)["test"]) == {
        "teacher_output",
        "probe",
        "student",
        *(f"student:{m}" for m in RECIPES if m != "blend-kd"),
    }
    for method, place in students_of(made.load()).items():
        info = Student.load(made.run / place).info
        assert info.method == method
        learns = 0 if RECIPES[method].pool == "never" else 12
        assert (info.num_labels_used, info.num_pool_rows) == (24, learns), method
    script = SHARED / "checks" / "run_contract.py"
    if script.is_file():
        done = subprocess.run([sys.executable, script, made.run], capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.parametrize("kind", ["classification", "multiple_choice"])
def test_each_is_told_what_its_method_says(everything: Callable[[str], Workspace], kind: str) -> None:
    made = everything(kind)
    config = made.load()
    targets = {
        m: SoftTargets.load(made.run / place_of_targets(config, m)) for m, recipe in RECIPES.items() if not recipe.gold
    }
    assert place_of_targets(config, "blend-kd") == "targets.parquet"
    gold = {r["id"]: r["answer"] for r in pq.read_table(made.run / "predictions.parquet").to_pylist()}
    for method, told in targets.items():
        rows = 24 if RECIPES[method].pool == "never" else 36
        assert len(told) == len(set(told.ids)) == rows, method
        assert not set(told.ids) & set(gold), "a test row is told"
        if method not in ("label-smoothing", "self-train", "probe-kd-in-sample"):
            assert told.sources == ("oof",) * 24 + ("pooled",) * 12, method
    student = Student.load(made.run / "baselines" / "labels" / "student")
    run = made.load()
    from probekd.progress import Silent
    from probekd.stages import Run, RunDirectory

    pool = Run(RunDirectory(made.run), run, Silent()).task.rows("unlabelled")
    said = dict(zip((e.id for e in pool), student.predict_proba(pool), strict=True))
    told = dict(zip(targets["self-train"].ids, targets["self-train"].probs, strict=True))
    for row_id, p in said.items():
        np.testing.assert_allclose(told[row_id], p, atol=1e-6)
    probe = targets["probe-kd"].by_id()
    assert any(not np.allclose(z, probe[i]) for i, z in targets["probe-kd-shuffled"].by_id().items())


def test_self_training_wants_the_student_that_teaches_it(everything: Callable[[str], Workspace]) -> None:
    made = everything("classification")
    with pytest.raises(ConfigError, match="add labels to them"):
        made.load("student.method=self-train", "student.baselines=[probe-kd]")
    order = list(students_of(made.load("student.method=self-train", "student.baselines=[labels]")))
    assert order == ["labels", "self-train"]


def test_a_run_whose_own_student_trains_itself_is_whole_when_it_is_looked_at_again(
    tmp_path: Path, model_dir: Callable[[str], Path]
) -> None:
    """What the labels' student says is written after ``label``, and must not take the place of what that stage wrote."""
    made = workspace(tmp_path, "classification", teacher=model_dir("llama"), student=model_dir("bert"), sizes=SIZES)
    made.config["student"] |= {"method": "self-train", "baselines": ["labels"], "early_stopping": None}
    made.config["probe"] |= {"depths": [1, 2], "stack": False, "windows": [1]}
    run_stages(made.load())
    before, record = (made.run / "targets.parquet").read_bytes(), (made.run / "run.json").read_bytes()
    assert (made.run / "baselines" / "self-train" / "targets.parquet").is_file()
    run_stages(made.load())
    assert (made.run / "targets.parquet").read_bytes() == before
    assert json.loads((made.run / "run.json").read_text())["stages"] == json.loads(record)["stages"]
