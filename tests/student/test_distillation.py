from __future__ import annotations

import gc
import json
import os
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from safetensors.torch import load_file
from transformers import TrainerCallback
from transformers.integrations import INTEGRATION_TO_CALLBACK

from probekd.config import EarlyStoppingConfig, HiddenConfig, StudentConfig
from probekd.errors import ConfigError, DataError, ModelError
from probekd.student import Student, distill
from probekd.student.calibration import calibrated_log_loss
from probekd.student.model import StudentInfo
from probekd.targets import SoftTargets, softmax
from probekd.tasks.base import Example, Task


def make_targets(rows: list[Example], best: list[int], strength: float = 4.0) -> SoftTargets:
    """Targets that favour one option of each row."""
    n = len(rows)
    return SoftTargets(
        ids=tuple(e.id for e in rows),
        splits=tuple("unlabelled" if e.answer is None else "train" for e in rows),
        logits=tuple(strength * (np.arange(len(e.options)) == b) for e, b in zip(rows, best, strict=True)),
        sources=("oof",) * n,
        folds=(-1,) * n,
    )


def true_kinds(task: Task) -> list[int]:
    """Gold answer of every row of train and pool; ids of the toy task carry it."""
    return [int(e.id.split("-")[0][-1]) for e in task.rows("train", "unlabelled")]


def accuracy(student: Student, rows: list[Example], best: list[int | None]) -> float:
    return float(np.mean([p.argmax() == b for p, b in zip(student.predict_proba(rows), best, strict=True)]))


class Recorder:
    def __init__(self) -> None:
        self.calls: list[tuple[object, ...]] = []

    def start(self, what: str, total: int, unit: str) -> None:
        self.calls.append(("start", total, unit))

    def advance(self, amount: int) -> None:
        self.calls.append(("advance", amount))

    def finish(self) -> None:
        self.calls.append(("finish",))


def test_labels_learn_a_separable_classification_task(kinds: Task, kinds_student: Student) -> None:
    test = kinds.rows("test")
    assert accuracy(kinds_student, test, [e.answer for e in test]) >= 0.95
    assert kinds_student.info.num_labels_used == 48
    assert kinds_student.info.num_pool_rows == 0


def test_kd_learns_a_separable_classification_task(kinds: Task, config: StudentConfig) -> None:
    targets = make_targets(kinds.rows("train", "unlabelled"), true_kinds(kinds))
    student = distill(config.model, kinds, targets, config=config)
    test = kinds.rows("test")
    assert accuracy(student, test, [e.answer for e in test]) >= 0.95
    assert student.info.num_pool_rows == 48


def test_labels_learn_a_separable_multiple_choice_task(which: Task, which_student: Student) -> None:
    test = which.rows("test")
    probs = which_student.predict_proba(test)
    assert [p.shape for p in probs] == [(len(e.options),) for e in test]
    assert {len(e.options) for e in test} == {2, 3, 4}
    assert accuracy(which_student, test, [e.answer for e in test]) >= 0.9


def test_kd_learns_from_ragged_multiple_choice(which: Task, config: StudentConfig) -> None:
    """Targets that always favour the option that is a tool, whatever the question asks: so does the student."""

    def tool(e: Example) -> int | None:
        found = [i for i, option in enumerate(e.options) if option in ("hammer", "saw", "drill", "wrench")]
        return found[0] if len(found) == 1 else None

    def with_a_tool(split: str) -> tuple[Example, ...]:
        return tuple(e for e in which.rows(split) if tool(e) is not None)

    task = replace(which, splits={name: with_a_tool(name) for name in which.splits})
    rows = task.rows("train", "unlabelled")
    targets = make_targets(rows, [tool(e) or 0 for e in rows])
    soft_only = config.model_copy(update={"alpha": 0.0, "epochs": 10, "batch_size": 16})
    student = distill(config.model, task, targets, config=soft_only)
    test = task.rows("test")
    assert {len(e.options) for e in test} == {2, 3, 4}
    assert accuracy(student, test, [tool(e) for e in test]) >= 0.95


def test_soft_targets_are_followed_against_the_gold_labels(kinds: Task, config: StudentConfig) -> None:
    rows, test = kinds.rows("train", "unlabelled"), kinds.rows("test")
    wrong = [(k + 1) % 3 for k in true_kinds(kinds)]
    soft_only = config.model_copy(update={"alpha": 0.0})
    student = distill(config.model, kinds, make_targets(rows, wrong), config=soft_only, method="logit-kd")
    assert accuracy(student, test, [(e.answer + 1) % 3 for e in test if e.answer is not None]) >= 0.95
    gold_on_train = replace(kinds, splits={**kinds.splits, "unlabelled": ()})
    gold_only = config.model_copy(update={"alpha": 1.0, "epochs": 20})
    student = distill(config.model, gold_on_train, make_targets(rows, wrong), config=gold_only)
    assert accuracy(student, test, [e.answer for e in test]) >= 0.95


def test_students_are_as_sure_as_their_targets(kinds: Task, config: StudentConfig) -> None:
    rows = kinds.rows("train", "unlabelled")
    soft_only = config.model_copy(update={"alpha": 0.0})
    student = distill(config.model, kinds, make_targets(rows, true_kinds(kinds), strength=1.0), config=soft_only)
    wanted = np.e / (np.e + 2)  # softmax of (1, 0, 0)
    confidence = [p.max() for p in student.predict_proba(kinds.rows("test"))]
    assert np.mean(confidence) == pytest.approx(wanted, abs=0.05)


def test_labels_never_see_the_pool(kinds: Task, config: StudentConfig, tmp_path: Path) -> None:
    without = replace(kinds, splits={"train": kinds.splits["train"]})
    short = config.model_copy(update={"label_epochs": 1})
    for name, task in (("with", kinds), ("without", without)):
        distill(config.model, task, None, method="labels", config=short, output_dir=tmp_path / name)
    assert (tmp_path / "with/model.safetensors").read_bytes() == (tmp_path / "without/model.safetensors").read_bytes()


def test_labels_do_not_depend_on_the_options_of_kd(kinds: Task, config: StudentConfig, tmp_path: Path) -> None:
    for name, change in (("a", {"alpha": 0.2, "temperature": 4.0}), ("b", {"alpha": 0.9, "epochs": 2.0})):
        changed = config.model_copy(update={"label_epochs": 1, **change})
        distill(config.model, kinds, None, method="labels", config=changed, output_dir=tmp_path / name)
    a, b = ((tmp_path / name / "model.safetensors").read_bytes() for name in "ab")
    assert a == b


def test_the_same_seed_gives_the_same_bits_and_another_does_not(
    kinds: Task, config: StudentConfig, tmp_path: Path
) -> None:
    targets = make_targets(kinds.rows("train", "unlabelled"), true_kinds(kinds))
    short = config.model_copy(update={"epochs": 1})
    for name, seed in (("a", 3), ("b", 3), ("c", 4)):
        torch.rand(5)  # whatever the caller drew before must not matter
        distill(config.model, kinds, targets, config=short, output_dir=tmp_path / name, seed=seed)
    a, b, c = ((tmp_path / name / "model.safetensors").read_bytes() for name in "abc")
    assert a == b
    assert a != c


def test_training_starts_from_the_checkpoint(kinds: Task, config: StudentConfig) -> None:
    still = config.model_copy(update={"label_epochs": 1, "learning_rate": 1e-12})
    student = distill(config.model, kinds, None, method="labels", config=still)
    trained = load_file(student.directory / "model.safetensors")
    checkpoint = load_file(Path(config.model) / "model.safetensors")
    for name, tensor in checkpoint.items():
        torch.testing.assert_close(trained[f"bert.{name}"], tensor)


def test_the_directory_records_the_training(kinds: Task, config: StudentConfig, tmp_path: Path) -> None:
    short = config.model_copy(update={"label_epochs": 1, "max_length": 8})
    distill(config.model, kinds, None, method="labels", config=short, output_dir=tmp_path / "student", seed=5)
    record = json.loads((tmp_path / "student/probekd.json").read_text())
    words = [len(e.question.split()) for e in kinds.rows("train")]
    assert record["num_cut_rows"] == sum(n + 2 > 8 for n in words) > 0
    assert record["max_length"] == 8
    assert record["labels"] == ["animal", "tool", "food"]
    assert (record["method"], record["task"], record["seed"]) == ("labels", "kinds", 5)
    assert record["training_loss"] == pytest.approx(np.log(3), abs=0.7)
    assert record["versions"]["torch"] == torch.__version__
    assert config.model not in (tmp_path / "student/README.md").read_text()
    assert [p.name for p in tmp_path.iterdir()] == ["student"]


def test_progress_counts_every_step(kinds: Task, config: StudentConfig) -> None:
    recorder = Recorder()
    short = config.model_copy(update={"label_epochs": 2})
    distill(config.model, kinds, None, method="labels", config=short, progress=recorder)
    assert recorder.calls == [("start", 12, "steps"), *[("advance", 1)] * 12, ("finish",)]


def test_training_is_silent_and_leaves_the_log_level(
    kinds: Task, config: StudentConfig, capfd: pytest.CaptureFixture[str], recwarn: pytest.WarningsRecorder
) -> None:
    level = transformers.logging.get_verbosity()
    bars = transformers.logging.is_progress_bar_enabled()
    student = distill(config.model, kinds, None, method="labels", config=config.model_copy(update={"label_epochs": 1}))
    student.predict_proba(kinds.rows("test"))
    captured = capfd.readouterr()
    assert (captured.out, captured.err) == ("", "")
    assert [str(w.message) for w in recwarn] == []
    assert transformers.logging.get_verbosity() == level
    assert transformers.logging.is_progress_bar_enabled() == bars


def test_a_temporary_student_lives_as_long_as_its_object(kinds: Task, config: StudentConfig) -> None:
    student = distill(config.model, kinds, None, method="labels", config=config.model_copy(update={"label_epochs": 1}))
    directory = student.directory
    assert (directory / "model.safetensors").is_file()
    del student
    gc.collect()
    assert not directory.exists()


def test_an_earlier_student_is_replaced_and_anything_else_is_not(
    kinds: Task, config: StudentConfig, tmp_path: Path
) -> None:
    short = config.model_copy(update={"label_epochs": 1})
    out = tmp_path / "student"
    for seed in (0, 1):
        distill(config.model, kinds, None, method="labels", config=short, output_dir=out, seed=seed)
    assert Student.load(out).info.seed == 1
    (tmp_path / "precious").mkdir()
    (tmp_path / "precious/thesis.tex").write_text("all of it")
    with pytest.raises(ModelError, match="not a student directory"):
        distill(config.model, kinds, None, method="labels", config=short, output_dir=tmp_path / "precious")
    assert (tmp_path / "precious/thesis.tex").read_text() == "all of it"


def test_divergence_is_an_error_and_leaves_nothing(kinds: Task, config: StudentConfig, tmp_path: Path) -> None:
    wild = config.model_copy(update={"learning_rate": 1e38, "checkpoint_seconds": 0})
    with pytest.raises(ModelError, match=r"lower student\.learning_rate"):
        distill(config.model, kinds, None, method="labels", config=wild, output_dir=tmp_path / "student")
    assert list(tmp_path.iterdir()) == []


def test_rows_without_a_target_are_an_error(kinds: Task, config: StudentConfig) -> None:
    targets = make_targets(kinds.rows("train"), true_kinds(kinds)[:48])
    with pytest.raises(DataError, match=r"48 of 96 .* no target, such as 'pool0-0'"):
        distill(config.model, kinds, targets, config=config)


@pytest.mark.parametrize("logits", [np.zeros(2), np.array([np.nan, 0, 0]), np.full(3, -np.inf)])
def test_a_target_that_is_no_distribution_is_an_error(kinds: Task, config: StudentConfig, logits: np.ndarray) -> None:
    targets = make_targets(kinds.rows("train", "unlabelled"), true_kinds(kinds))
    broken = replace(targets, logits=(*targets.logits[:-1], logits))
    with pytest.raises(DataError, match=r"row 'pool2-15'.*3 options"):
        distill(config.model, kinds, broken, config=config)


def test_targets_and_method_must_agree(kinds: Task, config: StudentConfig) -> None:
    targets = make_targets(kinds.rows("train", "unlabelled"), true_kinds(kinds))
    with pytest.raises(ConfigError, match="pass targets=None"):
        distill(config.model, kinds, targets, method="labels", config=config)
    with pytest.raises(ConfigError, match="'probe-kd' needs targets"):
        distill(config.model, kinds, None, config=config)


def test_a_pool_row_with_an_answer_is_refused(kinds: Task, config: StudentConfig) -> None:
    leaky = replace(kinds, splits={**kinds.splits, "unlabelled": kinds.splits["test"]})
    targets = make_targets(leaky.rows("train", "unlabelled"), true_kinds(leaky))
    with pytest.raises(AssertionError, match="kept its answer"):
        distill(config.model, leaky, targets, config=config)


@pytest.mark.parametrize("train", ["none", "unanswered"])
def test_train_rows_must_be_labelled(kinds: Task, config: StudentConfig, train: str) -> None:
    rows = () if train == "none" else kinds.splits["unlabelled"]
    with pytest.raises(DataError, match="no labelled training rows" if train == "none" else r"'pool0-0'.*no answer"):
        distill(config.model, replace(kinds, splits={"train": rows}), None, method="labels", config=config)


def noisy(task: Task, share: float, seed: int = 0) -> Task:
    """Some labelled rows get a wrong answer, in training and validation alike, so that a network can learn too much."""
    draw = np.random.default_rng(seed)

    def spoil(rows: tuple[Example, ...]) -> tuple[Example, ...]:
        return tuple(
            replace(e, answer=((e.answer or 0) + 1) % len(e.options)) if draw.random() < share else e for e in rows
        )

    train, test = task.splits["train"], task.splits["test"]
    return replace(task, splits={**task.splits, "train": spoil(train), "validation": spoil(test)})


def test_the_best_epochs_weights_are_kept_and_calibrated(kinds: Task, config: StudentConfig) -> None:
    task = noisy(kinds, 0.3)
    watched = config.model_copy(update={"label_epochs": 24, "early_stopping": EarlyStoppingConfig(patience=6)})
    student = distill(config.model, task, None, method="labels", config=watched)
    losses = [epoch.log_loss for epoch in student.info.history]
    best = min(losses)
    assert losses.index(best) + 6 == len(losses) - 1 < 23
    rows = task.rows("validation")
    answers = np.array([e.answer for e in rows])
    assert calibrated_log_loss(student.logits(rows), answers) == pytest.approx(best, rel=1e-5)
    calibration = student.info.calibration
    assert calibration is not None and calibration.rows == "validation" and calibration.n == len(rows)
    assert calibration.nll_after == pytest.approx(best, rel=1e-5) and calibration.nll_after <= calibration.nll_before
    assert student.info.choice == ()


def test_without_early_stopping_every_epoch_is_trained_and_still_calibrated(kinds: Task, config: StudentConfig) -> None:
    task = noisy(kinds, 0.3)
    student = distill(config.model, task, None, method="labels", config=config.model_copy(update={"label_epochs": 9}))
    assert [epoch.epoch for epoch in student.info.history] == list(range(1, 10))
    assert student.info.history[-1].log_loss == pytest.approx(student.info.calibration.nll_after, rel=1e-5)


def test_without_validation_rows_all_rows_train_for_the_epochs_that_a_fold_chose(
    kinds: Task, config: StudentConfig
) -> None:
    task = replace(kinds, splits={"train": noisy(kinds, 0.3).splits["train"]})
    watched = config.model_copy(update={"label_epochs": 24, "early_stopping": EarlyStoppingConfig(patience=4)})
    student = distill(config.model, task, None, method="labels", config=watched)
    info = student.info
    chosen = min(info.choice, key=lambda epoch: epoch.log_loss)
    assert chosen.epoch < 24
    assert info.history[-1].epoch == chosen.epoch
    held = round(48 / 5)
    assert chosen.steps == chosen.epoch * -(-(48 - held) // 8)
    assert info.history[-1].steps == chosen.epoch * 48 // 8
    assert info.calibration.rows == "held out" and abs(info.calibration.n - held) <= 2
    assert info.calibration.nll_after == pytest.approx(chosen.log_loss, rel=1e-5)
    assert info.calibration.growth > 1  # more rows, more steps
    assert info.num_labels_used == 48


def test_predictions_are_calibrated_and_logits_raw(kinds: Task, config: StudentConfig) -> None:
    short = config.model_copy(update={"label_epochs": 3})
    student = distill(config.model, noisy(kinds, 0.3), None, method="labels", config=short)
    rows = kinds.rows("test")
    temperature = student.info.calibration.temperature
    assert abs(temperature - 1) > 0.05
    for raw, probs in zip(student.logits(rows), student.predict_proba(rows), strict=True):
        np.testing.assert_allclose(probs, softmax(raw / temperature))
    again = Student.load(student.directory)
    assert again.info == student.info


def test_hidden_states_are_learnt_and_the_projection_is_thrown_away(
    kinds: Task, config: StudentConfig, tmp_path: Path
) -> None:
    """Three labels, and states of the pool that tell the kinds apart: the states do the teaching."""
    labelled = tuple(next(e for e in kinds.rows("train") if e.answer == k) for k in range(3))
    task = replace(kinds, splits={**kinds.splits, "train": labelled})
    rows = task.rows("train", "unlabelled")
    means = np.random.default_rng(0).normal(size=(3, 10)) * 3
    states = {e.id: means[k] + 0.1 for e, k in zip(rows, [0, 1, 2, *true_kinds(kinds)[48:]], strict=True)}
    match = config.model_copy(update={"hidden": HiddenConfig(loss="mse", weight=3.0), "epochs": 40})
    student = distill(
        config.model, task, None, hidden=states, method="hidden-kd", config=match, output_dir=tmp_path / "s"
    )
    assert student.info.num_pool_rows == 48 and student.info.method == "hidden-kd"
    assert student.info.history[-1].loss < student.info.history[0].loss / 3
    test = task.rows("test")
    assert accuracy(student, test, [e.answer for e in test]) >= 0.9
    assert not [name for name in load_file(tmp_path / "s/model.safetensors") if "projection" in name]


def test_states_must_go_with_the_texts_that_a_student_reads(which: Task, config: StudentConfig) -> None:
    states = {e.id: np.ones(4) for e in which.rows("train", "unlabelled")}
    with pytest.raises(DataError, match=r"row 'train0': 1 teacher state\(s\) for the \d by which a student"):
        distill(config.model, which, None, hidden=states, method="hidden-kd", config=config)


@pytest.mark.parametrize("divergence", ["reverse_kl", "jensen_shannon"])
def test_other_divergences_learn_the_task_too(kinds: Task, config: StudentConfig, divergence: str) -> None:
    targets = make_targets(kinds.rows("train", "unlabelled"), true_kinds(kinds))
    other = config.model_copy(update={"divergence": divergence, "confidence_weights": True, "alpha": 0.0})
    student = distill(config.model, kinds, targets, config=other)
    test = kinds.rows("test")
    assert accuracy(student, test, [e.answer for e in test]) >= 0.95


def test_activations_may_be_computed_anew_and_steps_in_bfloat16(kinds: Task, config: StudentConfig) -> None:
    short = config.model_copy(update={"label_epochs": 2})
    losses = {
        name: distill(
            config.model, kinds, None, method="labels", config=short.model_copy(update={name: True})
        ).info.training_loss
        for name in ("gradient_checkpointing", "bf16")
    }
    plain = distill(config.model, kinds, None, method="labels", config=short).info.training_loss
    assert losses["gradient_checkpointing"] == pytest.approx(plain, rel=1e-6)
    assert losses["bf16"] == pytest.approx(plain, rel=0.05) and losses["bf16"] != plain


class FileTracker(TrainerCallback):
    """As Transformers' TensorBoard callback: files under the Trainer's output directory, if no variable says another."""

    def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **kwargs: Any) -> None:
        path = Path(os.environ.get("TENSORBOARD_LOGGING_DIR") or Path(args.output_dir) / "runs") / "events"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(str(logs))


def test_what_tensorboard_is_told_stays_beside_the_student(
    kinds: Task, config: StudentConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(INTEGRATION_TO_CALLBACK, "tensorboard", FileTracker)
    monkeypatch.setattr("probekd.student.fit.util.find_spec", lambda name: name)
    monkeypatch.delenv("TENSORBOARD_LOGGING_DIR", raising=False)
    watched = config.model_copy(
        update={"label_epochs": 2, "report_to": ("tensorboard",), "early_stopping": EarlyStoppingConfig()}
    )
    train = partial(distill, config.model, kinds, None, method="labels", config=watched)
    train(output_dir=tmp_path / "mine")
    kept = {str(path.relative_to(tmp_path)) for path in tmp_path.rglob("events")}
    assert kept == {"mine.logs/training/runs/events", "mine.logs/choice/runs/events"}
    assert StudentInfo.load(tmp_path / "mine").method == "labels"
    with pytest.raises(ConfigError, match=r"tensorboard writes beside .* give output_dir"):
        train()
    monkeypatch.setenv("TENSORBOARD_LOGGING_DIR", str(tmp_path / "elsewhere"))
    train()
    assert (tmp_path / "elsewhere" / "events").is_file()
