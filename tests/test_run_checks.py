"""Mistakes about students that configs show end a run before the teacher is loaded and before anything is written."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from workspace import Workspace, workspace

from probekd.errors import ProbeKDError
from probekd.run import run_stages

SMALL = {"train": 18, "unlabelled": 6, "test": 9}
Make = Callable[..., Workspace]


@pytest.fixture
def make(tmp_path: Path, model_dir: Callable[[str], Path]) -> Make:
    def make(student: str, task: str = "classification", **options: Any) -> Workspace:
        made = workspace(tmp_path, task, teacher=model_dir("llama"), student=model_dir(student), sizes=SMALL)
        made.config["student"] |= options
        return made

    return make


@pytest.mark.parametrize(
    ("student", "options", "said"),
    [
        ("bert", {"batch_size": 1000, "gradient_accumulation": 7}, "make it a multiple of 7"),
        ("bert", {"report_to": ["trackio"]}, "trackio is not installed; pip install trackio"),
        (
            "bert",
            {"lora": {"targets": ["nope"]}},
            r"nope cannot be adapted in .* name some of its linear modules: .*query",
        ),
        ("qwen2", {"kind": "label_token", "lora": {"targets": ["nope"]}}, "nope cannot be adapted in .*q_proj"),
        ("llama", {"kind": "cut", "lora": {"targets": ["nope"]}}, "nope cannot be adapted in .*q_proj"),
        ("gpt2", {"task": "multiple_choice"}, "gpt2 has no MultipleChoice head in Transformers"),
        ("bert", {"kind": "label_token"}, "bert is not a decoder, so it cannot answer in words"),
        ("llama", {"kind": "cut", "depth": 99}, r"none was tried; see probe.families"),
        ("bert", {"kind": "static", "lora": {}}, "lora: a student of kind static trains no network"),
        (
            "bert",
            {"kind": "static", "gradient_checkpointing": True},
            "gradient_checkpointing: a student of kind static trains no network",
        ),
        ("albert", {"gradient_checkpointing": True}, r"albert \(.*\) cannot compute its activations anew"),
    ],
)
def test_a_mistake_is_found_before_the_teacher_is_loaded(
    make: Make, student: str, options: dict[str, Any], said: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = make(student, **options)
    monkeypatch.setattr("probekd.student.fit.util.find_spec", lambda name: None)
    monkeypatch.setattr("probekd.stages.load_teacher", lambda config: pytest.fail("the teacher was loaded"))
    with pytest.raises(ProbeKDError, match=said):
        run_stages(made.load())
    assert not made.run.exists()


def test_a_cut_student_wants_a_probe_that_can_be_its_head(make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("probekd.stages.load_teacher", lambda config: pytest.fail("the teacher was loaded"))
    for changes in ({"families": ["mlp"]}, {"depths": [0]}):
        made = make("llama", kind="cut")
        made.config["probe"] |= changes
        with pytest.raises(ProbeKDError, match="cut needs a probe that is linear"):
            run_stages(made.load())


def test_a_validation_row_too_long_for_the_student_is_found_before_states_are_read(
    tmp_path: Path, model_dir: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    made = workspace(
        tmp_path,
        "multiple_choice",
        teacher=model_dir("llama"),
        student=model_dir("bert"),
        sizes={**SMALL, "validation": 6},
        evaluate={"splits": ["test"], "bootstrap": 100},
    )
    made.rows["validation"][2]["options"][0] = "horse " * 40
    monkeypatch.setattr("probekd.stages.Run.read", lambda *args, **what: pytest.fail("states were read"))
    with pytest.raises(ProbeKDError, match="validation-2"):
        run_stages(made.load())


def test_students_that_are_there_are_asked_for_nothing(make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    made = make("bert", baselines=[])
    run_stages(made.load())
    monkeypatch.setattr("probekd.student.fit.util.find_spec", lambda name: None)
    run_stages(made.load("student.report_to=[trackio]"), only="report", resume=True)
