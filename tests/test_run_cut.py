"""A whole run whose student is cut out of its teacher."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from workspace import SIZES, workspace

from probekd.errors import ConfigError, DataError
from probekd.run import run_stages

Dir = Callable[[str], Path]


@pytest.mark.usefixtures("one_temperature")  # a linear head has no lapse
def test_a_student_that_is_not_trained_is_the_probe(tmp_path: Path, model_dir: Dir) -> None:
    teacher = Path(shutil.copytree(model_dir("llama"), tmp_path / "teacher"))
    (teacher / "README.md").write_text("---\nlicense: apache-2.0\n---\n")
    made = workspace(tmp_path / "w", "multiple_choice", teacher=teacher, student=teacher, sizes={**SIZES, "test": 12})
    made.config["student"] |= {
        "kind": "cut",
        "epochs": 0,
        "baselines": ["labels"],
        "label_epochs": 1,
        "max_length": 128,
    }
    made.config["probe"] |= {"positions": ["option_mean"], "windows": [1], "stack": False}
    run_stages(made.load())
    table = pq.read_table(made.run / "predictions.parquet").to_pylist()
    probs = {who: {r["id"]: r["probs"] for r in table if r["who"] == who} for who in ("probe", "student")}
    assert len(probs["student"]) == 12
    for row, mine in probs["student"].items():
        assert mine == pytest.approx(probs["probe"][row], abs=1e-3)
    probe = json.loads((made.run / "probes" / "probe.json").read_text())
    config = json.loads((made.run / "student" / "config.json").read_text())
    assert config["num_hidden_layers"] == probe["reader"]["depth"]
    labels = json.loads((made.run / "baselines" / "labels" / "student" / "cut.json").read_text())
    assert labels["normed"] and not list((made.run / ".parts").glob("*-start"))
    info = json.loads((made.run / "student" / "probekd.json").read_text())
    assert (info["base_model"], info["base_licence"]) == ("teacher", "apache-2.0")
    assert "base model, teacher: apache-2.0" in (made.run / "student" / "README.md").read_text()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"student.kind": "head"}, "epochs: 0 leaves a student untrained"),
        ({"student.baselines": "[logit-kd]"}, "epochs: 0 trains no student of the method logit-kd"),
        ({"student.model": "elsewhere"}, "made of the teacher's blocks; give both the same model"),
        ({"teacher.quantization": "4bit"}, "no student of kind cut is made of a quantised teacher"),
        ({"student.kind": "head", "student.epochs": "1", "student.depth": "2"}, "depth: only a student of kind cut"),
    ],
)
def test_configs_that_no_cut_student_can_follow(
    changes: dict[str, str], message: str, tmp_path: Path, model_dir: Dir
) -> None:
    teacher = model_dir("llama")
    made = workspace(tmp_path, "multiple_choice", teacher=teacher, student=teacher)
    made.config["student"] |= {"kind": "cut", "epochs": 0, "baselines": []}
    with pytest.raises(ConfigError, match=message):
        made.load(*(f"{key}={value}" for key, value in changes.items()))


def test_a_row_that_does_not_fit_ends_the_run_before_the_reader_is_known(tmp_path: Path, model_dir: Dir) -> None:
    teacher = model_dir("llama")
    made = workspace(tmp_path, "multiple_choice", teacher=teacher, student=teacher, sizes={**SIZES, "test": 12})
    made.config["student"] |= {"kind": "cut", "epochs": 0, "baselines": [], "max_length": 128}
    made.rows["test"][3]["question"] += " red" * 120
    with pytest.raises(DataError, match=r"row 'test-3': its prompt has \d+ tokens and the student reads 128"):
        run_stages(made.load())
    assert not list((made.run / "states").glob("*"))
