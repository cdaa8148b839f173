"""hidden-kd with every kind of student: what each reads is what the teacher's states are of, or it is refused at once."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from workspace import Workspace, workspace

from probekd.errors import ConfigError
from probekd.run import run_stages
from probekd.student import Student
from probekd.student.history import Epoch

Dir = Callable[[str], Path]
SMALL = {"train": 24, "unlabelled": 9, "test": 9}
BOTH = {"layouts": ["listed", "branched"]}


@pytest.fixture
def make(tmp_path: Path, model_dir: Dir) -> Callable[..., Workspace]:
    def make(kind: str, task: str, student: str, **changes: Any) -> Workspace:
        made = workspace(tmp_path, task, teacher=model_dir("llama"), student=model_dir(student), sizes=SMALL, **changes)
        made.config["student"] |= {"kind": kind, "method": "hidden-kd", "baselines": [], "max_length": 128}
        made.config["student"] |= {"epochs": 3, "early_stopping": None, "learning_rate": 1e-3}
        made.config["probe"] |= {"depths": [1, 2], "stack": False, "windows": [1], **made.config.pop("more", {})}
        return made

    return make


def history(made: Workspace) -> tuple[Epoch, ...]:
    info = Student.load(made.run / "student").info
    assert info.method == "hidden-kd" and info.num_pool_rows == 9
    return info.history


@pytest.mark.parametrize("task", ["classification", "multiple_choice"])
@pytest.mark.parametrize(
    ("kind", "student"),
    [("head", "bert"), ("static", "bert"), ("label_token", "qwen2"), ("option_likelihood", "qwen2"), ("cut", "llama")],
)
def test_every_kind_of_student_matches_states(
    make: Callable[..., Workspace], kind: str, student: str, task: str
) -> None:
    made = make(kind, task, student, prompt=BOTH)
    run_stages(made.load())
    epochs = history(made)
    assert len(epochs) == (1 if kind == "static" else 3)
    assert epochs[-1].loss < epochs[0].loss or kind == "static"


@pytest.mark.parametrize("kinds", [("option_likelihood", "label_token"), ("label_token", "option_likelihood")])
def test_another_kind_of_student_has_the_pool_read_where_it_reads(
    make: Callable[..., Workspace], kinds: tuple[str, str]
) -> None:
    made = make(kinds[0], "multiple_choice", "qwen2")
    run_stages(made.load())
    run_stages(made.load(f"student.kind={kinds[1]}"), resume=True)
    assert history(made)


def test_a_decoder_with_a_head_and_factors_does_too(make: Callable[..., Workspace]) -> None:
    made = make("head", "classification", "qwen2")
    made.config["student"]["lora"] = {"rank": 2, "targets": ["q_proj"]}
    run_stages(made.load())
    assert history(made)
    assert not list(made.run.rglob("adapter*"))


@pytest.mark.parametrize(
    ("kind", "task", "student", "changes", "said"),
    [
        ("option_likelihood", "classification", "qwen2", {}, "the state of each option"),
        (
            "label_token",
            "multiple_choice",
            "qwen2",
            {"prompt": {"permutations": 2}},
            "the state of a row at its answer",
        ),
        ("label_token", "multiple_choice", "qwen2", {"more": {"positions": ["option_end"]}}, "of a row at its answer"),
        ("head", "multiple_choice", "bert", {"more": {"positions": ["answer"]}}, "the state of each option"),
    ],
)
def test_what_the_probe_will_not_read_is_refused_before_the_teacher_is(
    make: Callable[..., Workspace],
    kind: str,
    task: str,
    student: str,
    changes: dict[str, Any],
    said: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    made = make(kind, task, student, **changes)
    monkeypatch.setattr("probekd.stages.load_teacher", lambda config: pytest.fail("the teacher was loaded"))
    with pytest.raises(ConfigError, match=said):
        run_stages(made.load())
    assert not made.run.exists()
