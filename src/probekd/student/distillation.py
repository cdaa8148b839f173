"""distill: train a student on a task's labels and soft targets, and save it."""

from __future__ import annotations

import tempfile
from collections.abc import Mapping
from importlib import metadata
from pathlib import Path

import numpy as np

from probekd.config import Method, StudentConfig
from probekd.errors import ConfigError, DataError, ModelError
from probekd.files import replacing
from probekd.progress import Progress, Silent
from probekd.student.card import model_card
from probekd.student.kinds import kind_named
from probekd.student.losses import UNLABELLED
from probekd.student.model import INFO_FILE, Student, StudentInfo
from probekd.student.trainer import TrainingRow, fit, seeded
from probekd.targets import SoftTargets, gold_targets
from probekd.tasks.base import Example, Task
from probekd.teacher.load import quiet_transformers


def distill(
    model: str | Path,
    task: Task,
    targets: SoftTargets | None,
    *,
    config: StudentConfig | None = None,
    method: Method = "probe-kd",
    output_dir: Path | None = None,
    seed: int = 0,
    progress: Progress | None = None,
) -> Student:
    """Train a student.

    ``labels`` learns from the labelled rows alone (cross-entropy, ``config.label_epochs``). The KD methods learn from
    labelled rows and pool (``losses.distillation_loss``, ``config.epochs``). The same seed gives the same weights.

    Args:
        model: A local Transformers directory or a Hub id; it stands in for ``config.model``.
        task: Labelled rows in ``train``, pool in ``unlabelled``.
        targets: Soft labels of all these rows; None for ``labels``.
        config: Training options; None = the defaults.
        method: Recorded with the student; decides only between gold labels and soft targets.
        output_dir: Where the student is saved, replacing a student that is there; None = a temporary directory, deleted
            when the Student is.
        seed: Seeds the head, the order of rows and dropout.
        progress: Told of each training step.

    Raises:
        ConfigError: targets that do not go with the method.
        DataError: no labelled rows, rows without a target, or a target of the wrong length.
        ModelError: a checkpoint that cannot be used, training that diverged, or an output directory that is in use.
    """
    config = config or StudentConfig(model=str(model))
    train, pool = _rows(task, method)
    if (targets is None) != (method == "labels"):
        fault = "needs targets" if targets is None else "learns from gold labels alone: pass targets=None"
        raise ConfigError(f"task {task.name}: the method {method!r} {fault}")
    # Cross-entropy is the case of one-hot targets in which the gold label has all the weight.
    alpha = 1.0 if targets is None else config.alpha
    logits = _target_logits(task, targets or _one_hot(train), [*train, *pool])
    if output_dir is not None:
        _check_output(output_dir)
    with seeded(seed):
        kind = kind_named(config.kind).load(model, task, config)
        with quiet_transformers():
            encoded = kind.encode([*train, *pool])
        rows = [
            TrainingRow(encoded=tokens, target_logits=target, answer=UNLABELLED if e.answer is None else e.answer)
            for e, tokens, target in zip([*train, *pool], encoded, logits, strict=True)
        ]
        epochs = config.label_epochs if method == "labels" else config.epochs
        loss = fit(
            kind,
            rows,
            config=config,
            epochs=epochs,
            alpha=alpha,
            seed=seed,
            progress=progress or Silent(),
        )
    info = StudentInfo(
        kind=task.kind,
        student_kind=config.kind,
        likelihood=config.likelihood,
        prompt=kind.task.prompt,
        worked_examples=tuple(kind.task.rows(*kind.task.splits)),
        labels=task.labels,
        max_length=kind.max_length,
        method=method,
        base_model=Path(model).name if Path(model).is_dir() else str(model),
        task=task.name,
        num_labels_used=len(train),
        num_pool_rows=len(pool),
        num_cut_rows=sum(tokens.cut for tokens in encoded),
        training_loss=loss,
        seed=seed,
        versions=_versions(),
    )
    temporary = tempfile.TemporaryDirectory(prefix="probekd-student-") if output_dir is None else None
    directory = Path(temporary.name) / "student" if temporary else Path(output_dir or "")
    with replacing(directory) as unfinished:
        kind.save(unfinished)
        info.save(unfinished)
        (unfinished / "README.md").write_text(model_card(info, kind), encoding="utf-8")
    return Student.load(directory, trust_remote_code=config.trust_remote_code, temporary=temporary)


def _rows(task: Task, method: Method) -> tuple[list[Example], list[Example]]:
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


def _one_hot(train: list[Example]) -> SoftTargets:
    answers = [e.answer for e in train if e.answer is not None]
    return gold_targets([e.id for e in train], answers, [len(e.options) for e in train])


def _target_logits(task: Task, targets: SoftTargets, examples: list[Example]) -> list[np.ndarray]:
    """Each row's target, shape (k_i,)."""
    by_id: Mapping[str, np.ndarray] = targets.by_id()
    if missing := [e.id for e in examples if e.id not in by_id]:
        raise DataError(
            f"task {task.name}: {len(missing)} of {len(examples)} training and pool rows have no target, such as "
            f"{missing[0]!r}; make the targets from the same task, labels and pool"
        )
    for e in examples:
        target = by_id[e.id]
        if target.shape != (len(e.options),) or not np.isfinite(target.max()):
            k = len(e.options)
            raise DataError(f"task {task.name}, row {e.id!r}: the target {target} is not one for {k} options")
    return [by_id[e.id] for e in examples]


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
