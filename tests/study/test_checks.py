"""What is wrong with a student is found before the teacher reads anything."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from transformers import T5Config

from probekd.errors import ConfigError, DataError, ModelError
from probekd.study import run
from probekd.study.config import StudyConfig
from probekd.study.run import run_study

Build = Callable[..., StudyConfig]
ModelDir = Callable[[str], Path]


@pytest.fixture
def refuses(tiny_study: Build, monkeypatch: pytest.MonkeyPatch) -> Callable[..., str]:
    """The message of a study that ends before it has begun."""

    def check(error: type[Exception], student: dict[str, Any], **changes: Any) -> str:
        monkeypatch.setattr(run, "make_cells", lambda *a: pytest.fail("the teacher would read now"))
        study = tiny_study(students=[student], seeds=[0], budgets=[12], **changes)
        with pytest.raises(error) as found:
            run_study(study)
        assert not (study.directory / "work" / "readings").exists()
        return str(found.value)

    return check


def test_a_checkpoint_that_is_no_student(refuses: Callable[..., str], model_dir: ModelDir, tmp_path: Path) -> None:
    path = shutil.copytree(model_dir("bert"), tmp_path / "t5")
    T5Config(d_model=8, num_layers=1).save_pretrained(path)
    for kind in ("static", "head", "option_likelihood"):
        assert "t5 is an encoder-decoder" in refuses(ModelError, {"model": str(path), "kind": kind})
    assert "bert is not a decoder" in refuses(ModelError, {"model": str(model_dir("bert")), "kind": "label_token"})


def test_rows_that_do_not_fit(refuses: Callable[..., str], model_dir: ModelDir) -> None:
    student = {"model": str(model_dir("llama")), "kind": "label_token", "max_length": 8}
    assert "study task texts, student" in refuses(DataError, student)


def test_hidden_states_that_a_student_does_not_read(
    refuses: Callable[..., str], model_dir: ModelDir, tiny_study: Build
) -> None:
    """It reads a text's labels one by one, and the teacher is asked for the state of the whole text alone."""
    student = {"model": str(model_dir("llama")), "kind": "option_likelihood", "max_length": 512}
    texts = tiny_study().model_dump(mode="json")["tasks"][:1]
    message = refuses(ConfigError, student, tasks=texts, methods=["labels", "hidden-kd"])
    assert "hidden-kd" in message


def test_trackers_files_that_would_be_gone_with_the_student(
    refuses: Callable[..., str], model_dir: ModelDir, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("probekd.student.fit.util.find_spec", lambda name: name)
    monkeypatch.delenv("TENSORBOARD_LOGGING_DIR", raising=False)
    student = {"model": str(model_dir("bert")), "kind": "head", "report_to": ["tensorboard"]}
    assert "set TENSORBOARD_LOGGING_DIR" in refuses(ConfigError, student)


def test_only_what_is_missing_is_checked(tiny_study: Build, monkeypatch: pytest.MonkeyPatch) -> None:
    study = tiny_study(seeds=[0], budgets=[12])
    run_study(study)
    monkeypatch.setattr("probekd.study.checks.kind_named", lambda name: pytest.fail("every cell is there"))
    run_study(study)
