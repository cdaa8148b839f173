"""distill: train a student on a task's labels and soft targets, and save it."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Mapping
from dataclasses import replace
from importlib import metadata
from pathlib import Path

import numpy as np

from probekd.config import StudentConfig
from probekd.errors import ConfigError, DataError, ModelError
from probekd.files import remove_leftovers, remove_leftovers_of, replacing
from probekd.progress import Progress, Silent
from probekd.student.calibration import calibrate_student
from probekd.student.card import model_card, write_card
from probekd.student.epochs import choose_epochs
from probekd.student.fold import fold_temperature
from probekd.student.history import mean_loss
from probekd.student.holdout import Watched, choose_watched
from probekd.student.kinds import StudentKind
from probekd.student.lessons import Lesson, gold_lessons, soft_lessons, with_states
from probekd.student.licence import Origin
from probekd.student.model import INFO_FILE, Student, StudentInfo
from probekd.student.processes import is_main, process_count, wait_for_all
from probekd.student.training import Job, Trained, prepare, run
from probekd.targets import SoftTargets
from probekd.tasks.base import Example, Task

# On these the logits are compared before and after a temperature is folded into the weights.
CHECKED_ROWS = 16


def distill(
    model: str | Path,
    task: Task,
    targets: SoftTargets | None,
    *,
    hidden: Mapping[str, np.ndarray] | None = None,
    config: StudentConfig | None = None,
    method: str = "probe-kd",
    output_dir: Path | None = None,
    seed: int = 0,
    progress: Progress | None = None,
) -> Student:
    """Train a student.

    ``labels`` learns from the labelled rows alone (cross-entropy). Every other method learns from labelled rows and pool
    for ``config.epochs``, or without a pool for ``config.label_epochs``: from soft targets, from the teacher's hidden states, or from both
    (``docs/students.md`` has the losses). The same seed gives the same weights, and so does a training that was killed
    and is called again with the same arguments.

    With 0 epochs the student stays what its checkpoint is, which one of kind ``cut`` may (``cutting.cut_student``).

    Under ``accelerate launch`` every process calls this and gets the student; the first one writes it.

    Args:
        model: A local Transformers directory or a Hub id; it stands in for ``config.model``.
        task: Labelled rows in ``train``, pool in ``unlabelled``; those of ``validation`` watch and calibrate.
        targets: Soft labels of all training rows; None for ``labels``, and for learning from hidden states alone.
        hidden: The teacher's state of each training row by id: (d,), at the answer; or (k, d), one for each option.
        config: Training options; None = the defaults.
        method: Recorded with the student; the arguments decide what it learns from.
        output_dir: Where the student is saved, replacing a student that is there; None = a temporary directory, deleted
            when the Student is. While it trains, checkpoints lie beside it; TensorBoard's files stay there, in
            ``<output_dir>.logs``.
        seed: Seeds the head, the order of rows, dropout, and the fold that is held out.
        progress: Told of each training step.

    Raises:
        ConfigError: targets that do not go with the method, or options that cannot be followed.
        DataError: no labelled rows, or rows without a target or state, or with one of the wrong shape.
        ModelError: a checkpoint that cannot be used, training that diverged, or an output directory that is in use.
    """
    config = config or StudentConfig(model=str(model))
    train_rows, pool = _rows(task, method)
    # A student that sees fewer rows gets more passes over them; a cut one may be left as the probe made it.
    few = method == "labels" or (not pool and config.epochs > 0)
    epochs = config.label_epochs if few else config.epochs
    pool = pool if epochs else []
    lessons = _lessons(task, [*train_rows, *pool], targets, hidden, config, method)
    root = _checkpoint_root(output_dir)
    job = Job(
        model=model,
        task=task,
        config=config,
        epochs=epochs,
        seed=seed,
        progress=progress or Silent(),
        root=root,
        logs=output_dir and output_dir.with_name(f"{output_dir.name}.logs"),
    )
    nothing = Watched(rows=None, rest=tuple(train_rows))
    watched = choose_watched(task, train_rows, config, seed) if epochs else nothing
    choice = choose_epochs(job, (*watched.rest, *pool), lessons, watched) if watched.rows == "held out" else None
    prepared = prepare(
        job,
        (*train_rows, *pool),
        lessons,
        watching=watched.examples if watched.rows == "validation" else (),
        stop_after=choice.epochs if choice else None,
    )
    trained = run(prepared, "training") if epochs else Trained(history=(), logits=[])
    calibration = choice.calibrate(prepared.kind) if choice else None
    if watched.rows == "validation":
        calibration = calibrate_student(trained.logits, prepared.held_out.answers, watched.rows)
    kind = prepared.kind
    if calibration is not None:
        some = [row.encoded for row in prepared.rows[:CHECKED_ROWS]]
        calibration = replace(calibration, folded=fold_temperature(kind, calibration.temperature, some))
    # The blocks of a cut student lie in a directory without a card; what it is made of is the config's model.
    origin = Origin.of(config.model if config.kind == "cut" else model, config.revision)
    info = StudentInfo(
        kind=task.kind,
        student_kind=config.kind,
        likelihood=config.likelihood,
        prompt=kind.task.prompt,
        worked_examples=tuple(kind.task.rows(*kind.task.splits)),
        labels=task.labels,
        max_length=kind.max_length,
        method=method,
        base_model=origin.name,
        base_licence=origin.licence,
        task=task.name,
        num_labels_used=len(train_rows),
        num_pool_rows=len(pool),
        num_cut_rows=sum(row.encoded.cut for row in prepared.rows),
        training_loss=mean_loss(trained.history) if epochs else 0.0,
        seed=seed,
        versions=_versions(),
        calibration=calibration,
        history=trained.history,
        choice=choice.history if choice else (),
    )
    return _save(kind, info, output_dir, root, config)


def _lessons(
    task: Task,
    examples: list[Example],
    targets: SoftTargets | None,
    hidden: Mapping[str, np.ndarray] | None,
    config: StudentConfig,
    method: str,
) -> dict[str, Lesson]:
    """What each row teaches."""
    where = f"task {task.name}"
    if (targets is None and hidden is None) != (method == "labels"):
        fault = "learns from gold labels alone: pass targets=None" if method == "labels" else "needs targets"
        raise ConfigError(f"{where}: the method {method!r} {fault}")
    lessons = gold_lessons(examples) if targets is None else soft_lessons(examples, targets, config, where)
    return lessons if hidden is None else with_states(lessons, examples, hidden, where)


def _checkpoint_root(output_dir: Path | None) -> Path | None:
    """Where checkpoints lie: hidden, beside the output directory, which is a student or nothing."""
    if output_dir is None:
        if process_count() > 1:
            raise ConfigError("several processes train one student: give output_dir, which all of them can read")
        return None
    _check_output(output_dir)
    root = output_dir.with_name(f".{output_dir.name}.checkpoints")
    if is_main():
        remove_leftovers_of(output_dir)
        if root.is_dir():
            remove_leftovers(root)
    return root


def _save(
    kind: StudentKind, info: StudentInfo, output_dir: Path | None, root: Path | None, config: StudentConfig
) -> Student:
    """Write the student's directory, remove its checkpoints, and load it."""
    temporary = tempfile.TemporaryDirectory(prefix="probekd-student-") if output_dir is None else None
    directory = Path(temporary.name) / "student" if temporary else Path(output_dir or "")
    wait_for_all()
    if is_main():
        with replacing(directory) as unfinished:
            kind.save(unfinished)
            info.save(unfinished)
            write_card(unfinished, model_card(info, kind))
        if root is not None:
            shutil.rmtree(root, ignore_errors=True)
    wait_for_all()
    return Student.load(directory, trust_remote_code=config.trust_remote_code, temporary=temporary)


def _rows(task: Task, method: str) -> tuple[list[Example], list[Example]]:
    """Labelled rows, and the pool that the method learns from."""
    train = task.rows("train")
    if not train:
        raise DataError(f"task {task.name}: no labelled training rows to train a student on")
    if unanswered := [e.id for e in train if e.answer is None]:
        raise DataError(
            f"task {task.name}: row {unanswered[0]!r} of train has no answer ({len(unanswered)} in all); "
            "Task.budget() moves such rows to the pool"
        )
    pool = [] if method == "labels" else task.rows("unlabelled")
    assert all(e.answer is None for e in pool), "a pool row has kept its answer"
    return train, pool


def _versions() -> dict[str, str]:
    versions = {name: metadata.version(name) for name in ("torch", "transformers")}
    try:
        return {"probekd": metadata.version("probekd"), **versions}
    except metadata.PackageNotFoundError:
        return {"probekd": "source tree", **versions}


def _check_output(directory: Path) -> None:
    """Refuse to replace anything but a student or an empty directory."""
    in_use = directory.is_file() or (directory.is_dir() and any(directory.iterdir()))
    if in_use and not (directory / INFO_FILE).is_file():
        raise ModelError(f"{directory}: exists and is not a student directory; give another output directory")
