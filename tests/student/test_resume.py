"""A training that is stopped anywhere goes on to the weights that it would have had."""

from __future__ import annotations

import itertools
import json
import random
import shutil
import signal
import time
from dataclasses import replace
from functools import partial
from multiprocessing.process import BaseProcess
from pathlib import Path

import forked
import numpy as np
import pytest

from probekd.config import EarlyStoppingConfig, StudentConfig
from probekd.student import distill
from probekd.targets import SoftTargets
from probekd.tasks.base import Example, Task

KILLS = 8


class Stop(Exception):  # noqa: N818
    pass


class StopAt:
    """Ends the work before a step, counted over all trainings; and notes where each began."""

    def __init__(self, step: int | None = None) -> None:
        self.left = step
        self.began: list[int] = []
        self.first = False

    def start(self, what: str, total: int, unit: str) -> None:
        self.began.append(0)
        self.first = True

    def advance(self, amount: int) -> None:
        # Only a training that goes on begins with more than one step at once, or with one while none is over.
        if self.first and amount > 1:
            self.began[-1] = amount
        else:
            self.left = None if self.left is None else self.left - 1
        self.first = False
        if self.left == 0:
            raise Stop

    def finish(self) -> None:
        pass


def soft(task: Task) -> SoftTargets:
    rows = task.rows("train", "unlabelled")
    logits = [np.random.default_rng(i).normal(size=len(e.options)) for i, e in enumerate(rows)]
    n = len(rows)
    return SoftTargets(
        ids=tuple(e.id for e in rows),
        splits=("train",) * n,
        logits=tuple(logits),
        sources=("oof",) * n,
        folds=(-1,) * n,
    )


def with_validation(task: Task) -> Task:
    return replace(task, splits={**task.splits, "validation": task.splits["test"]})


@pytest.fixture(scope="session")
def config(tiny_bert: Path) -> StudentConfig:
    """12 steps an epoch, and a checkpoint after each."""
    return StudentConfig(
        model=str(tiny_bert), learning_rate=3e-3, batch_size=8, epochs=3, label_epochs=3, checkpoint_seconds=0
    )


def train(task: Task, config: StudentConfig, out: Path, progress: StopAt | None = None) -> tuple[bytes, str]:
    distill(config.model, task, soft(task), config=config, output_dir=out, progress=progress or StopAt())
    return (out / "model.safetensors").read_bytes(), (out / "probekd.json").read_text()


@pytest.mark.parametrize("step", [1, 12, 13, 30])
def test_an_interrupted_training_goes_on_to_the_same_weights(
    kinds: Task, config: StudentConfig, tmp_path: Path, step: int
) -> None:
    """In the first step; at the end of an epoch, before its evaluation; in the next one; in the last."""
    task = with_validation(kinds)
    calm = train(task, config, tmp_path / "calm")
    with pytest.raises(Stop):
        train(task, config, tmp_path / "cut", StopAt(step))
    assert [f.name for f in tmp_path.iterdir() if f.name != "calm"] == ([".cut.checkpoints"] if step > 1 else [])
    seen = StopAt()
    assert train(task, config, tmp_path / "cut", seen) == calm
    assert seen.began == [step - 1 if step > 2 else 0]
    assert {f.name for f in tmp_path.iterdir()} == {"calm", "cut"}


def test_an_epoch_is_not_over_before_its_evaluation(
    kinds: Task, config: StudentConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    task = with_validation(kinds)
    calm = train(task, config, tmp_path / "calm")

    def stop(*_: object) -> float:
        raise Stop

    with monkeypatch.context() as patch, pytest.raises(Stop):
        patch.setattr("probekd.student.trainer.calibrated_log_loss", stop)
        train(task, config, tmp_path / "cut")
    seen = StopAt()
    assert train(task, config, tmp_path / "cut", seen) == calm
    assert seen.began == [11]


def test_checkpoints_hold_nothing_that_could_run(kinds: Task, config: StudentConfig, tmp_path: Path) -> None:
    with pytest.raises(Stop):
        train(with_validation(kinds), config, tmp_path / "cut", StopAt(20))
    files = [f for f in (tmp_path / ".cut.checkpoints").rglob("*") if f.is_file()]
    assert {f.suffix for f in files} == {".json", ".safetensors"}
    assert {f.parent.name for f in files} == {"training"}


def test_the_choice_of_epochs_is_not_made_again(kinds: Task, config: StudentConfig, tmp_path: Path) -> None:
    calm = train(kinds, config, tmp_path / "calm")
    with pytest.raises(Stop):
        train(kinds, config, tmp_path / "cut", StopAt(15))  # in the training that holds rows out
    with pytest.raises(Stop):
        train(kinds, config, tmp_path / "cut", StopAt(27))  # in the one on all rows
    seen = StopAt()
    assert train(kinds, config, tmp_path / "cut", seen) == calm
    assert len(seen.began) == 1 and seen.began[0] > 0


def test_the_best_weights_outlive_a_kill(
    kinds: Task, config: StudentConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The first epoch is the best, and is over before the interruption."""
    worse = itertools.count()
    monkeypatch.setattr("probekd.student.trainer.calibrated_log_loss", lambda *_: float(next(worse)))
    task = with_validation(kinds)
    one = config.model_copy(update={"early_stopping": EarlyStoppingConfig(patience=1)})
    (calm, info), (stopped, _) = train(task, config, tmp_path / "calm"), train(task, one, tmp_path / "stopped")
    assert calm == stopped
    assert [epoch["epoch"] for epoch in json.loads(info)["history"]] == [1, 2, 3]
    with pytest.raises(Stop):
        train(task, config, tmp_path / "cut", StopAt(30))
    assert train(task, config, tmp_path / "cut")[0] == calm


def test_what_a_kill_left_of_the_students_directory_goes(kinds: Task, config: StudentConfig, tmp_path: Path) -> None:
    """A kill while the student is saved; what lies beside it under another name is not ours to remove."""
    gone, kept = tmp_path / ".cut.0a1b2c3d.tmp", tmp_path / ".other.0a1b2c3d.tmp"
    for directory in (gone, kept):
        directory.mkdir()
        (directory / "model.safetensors").write_bytes(b"half")
    train(kinds, config, tmp_path / "cut")
    assert sorted(f.name for f in tmp_path.iterdir()) == [kept.name, "cut"]


def changed_config(task: Task, config: StudentConfig) -> tuple[Task, StudentConfig]:
    return task, config.model_copy(update={"alpha": 0.9})


def changed_row(task: Task, config: StudentConfig) -> tuple[Task, StudentConfig]:
    first, *rest = task.splits["train"]
    other = Example(id=first.id, question="the old horse seen here", options=first.options, answer=first.answer)
    return replace(task, splits={**task.splits, "train": (other, *rest)}), config


def changed_validation(task: Task, config: StudentConfig) -> tuple[Task, StudentConfig]:
    return replace(task, splits={**task.splits, "validation": task.splits["validation"][:-1]}), config


@pytest.mark.parametrize("change", [changed_config, changed_row, changed_validation])
def test_the_checkpoint_of_another_training_is_not_taken_up(
    kinds: Task, config: StudentConfig, tmp_path: Path, change: object
) -> None:
    task, other = change(with_validation(kinds), config)  # type: ignore[operator]
    calm = train(task, other, tmp_path / "calm")
    with pytest.raises(Stop):
        train(with_validation(kinds), config, tmp_path / "cut", StopAt(20))
    seen = StopAt()
    assert train(task, other, tmp_path / "cut", seen) == calm
    assert seen.began == [0]


def test_what_changes_no_weight_does_not_start_again(kinds: Task, config: StudentConfig, tmp_path: Path) -> None:
    task = with_validation(kinds)
    with pytest.raises(Stop):
        train(task, config, tmp_path / "cut", StopAt(20))
    seen = StopAt()
    train(task, config.model_copy(update={"checkpoint_seconds": 60, "baselines": ()}), tmp_path / "cut", seen)
    assert seen.began == [19]


@pytest.mark.slow
def test_kill_9_at_random_moments_changes_no_weight(kinds: Task, config: StudentConfig, tmp_path: Path) -> None:
    log = tmp_path / "log"

    def start(name: str) -> BaseProcess:
        return forked.start(
            partial(distill, config.model, kinds, soft(kinds), config=config, output_dir=tmp_path / name), log=log
        )

    forked.ready(log)
    began = time.monotonic()
    forked.finished(start("calm"), log)
    seconds, draw, done = time.monotonic() - began, random.Random(0), 0
    while done < KILLS:
        process = start("killed")
        process.join(timeout=seconds * draw.uniform(0.1, 0.7))
        process.kill()
        process.join()
        if process.exitcode == -signal.SIGKILL:
            done += 1
            continue
        forked.finished(process, log)
        # It ended before its kill, on a machine that got faster meanwhile: begin again, and kill sooner.
        shutil.rmtree(tmp_path / "killed")
        seconds *= 0.7
    forked.finished(start("killed"), log)
    for name in ("model.safetensors", "probekd.json"):
        assert (tmp_path / "killed" / name).read_bytes() == (tmp_path / "calm" / name).read_bytes()
    assert not [f for f in tmp_path.iterdir() if f.name.startswith(".")]
