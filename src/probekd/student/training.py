"""One training of a student: from a checkpoint and lessons to a network, and what it says of the rows that watch it."""

from __future__ import annotations

import hashlib
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path

import numpy as np
import torch

from probekd.config import SAME_STUDENT, StudentConfig
from probekd.errors import DataError, ModelError
from probekd.progress import Progress
from probekd.student.checkpoint import Checkpoints
from probekd.student.fit import fit
from probekd.student.history import Epoch
from probekd.student.kinds import StudentKind, kind_named
from probekd.student.kinds.static import Static
from probekd.student.lessons import Lesson
from probekd.student.load import check_checkpointing
from probekd.student.logits import row_logits
from probekd.student.losses import DIVERGENCES
from probekd.student.objective import HiddenMatch, Objective
from probekd.student.processes import process_count
from probekd.student.rows import TrainingRow
from probekd.student.static import solve_head
from probekd.student.trainer import HeldOut, seeded
from probekd.tasks.base import Example, Task
from probekd.teacher.load import quiet_transformers

# Options whose part in a training is hashed in another form, or that have none.
_NO_PART = {"model", "revision", "method", "baselines", *SAME_STUDENT}


@dataclass(frozen=True, kw_only=True)
class Job:
    """What all trainings of one ``distill`` share.

    Attributes:
        model: Checkpoint to start from.
        task: Kind, labels and prompt.
        config: Training options.
        epochs: Passes over the rows.
        seed: Of the head, the order of rows and dropout.
        progress: Told of each step.
        root: Directory of its checkpoints; None = none are written.
        logs: Directory of its trackers' files; None = there is none.
    """

    model: str | Path
    task: Task
    config: StudentConfig
    epochs: float
    seed: int
    progress: Progress
    root: Path | None
    logs: Path | None = None


@dataclass(frozen=True, kw_only=True)
class Prepared:
    """A training that is about to begin.

    Attributes:
        job: The student and how it is trained.
        kind: The student, at its starting weights.
        objective: What is trained.
        rows: Training rows.
        held_out: Rows that watch; possibly none.
        stop_after: End after so many epochs; None = when all are over or early stopping says so.
        key: Hash of all that decides what comes of it.
    """

    job: Job
    kind: StudentKind
    objective: Objective
    rows: list[TrainingRow]
    held_out: HeldOut
    stop_after: float | None
    key: str


@dataclass(frozen=True, kw_only=True)
class Trained:
    """What a training leaves, beside the weights.

    Attributes:
        history: What each epoch came to.
        logits: Of the rows that watched, (k_i,) each, at the weights that were kept.
    """

    history: tuple[Epoch, ...]
    logits: list[np.ndarray]


def prepare(
    job: Job,
    examples: Sequence[Example],
    lessons: Mapping[str, Lesson],
    *,
    watching: Sequence[Example] = (),
    stop_after: float | None = None,
) -> Prepared:
    """Load the student and tokenise the rows.

    Args:
        job: The student and how it is trained.
        examples: Training rows.
        lessons: What each of them teaches, by id.
        watching: Labelled rows whose log-loss is taken at the end of each epoch; with early stopping it decides.
        stop_after: See ``Prepared``.

    Raises:
        ConfigError: options that the student cannot follow.
        DataError: a row that does not fit, or teacher states that do not go with the student's texts.
        ModelError: a checkpoint that cannot be used.
    """
    config = job.config
    with seeded(job.seed), quiet_transformers():
        kind = kind_named(config.kind).load(job.model, job.task, config)
        encoded = kind.encode(examples)
        answers = np.array([e.answer for e in watching], dtype=np.int64)
        held_out = HeldOut(encoded=kind.encode(watching), answers=answers)
        rows = [TrainingRow(encoded=row, lesson=lessons[e.id]) for e, row in zip(examples, encoded, strict=True)]
        if config.gradient_checkpointing:
            check_checkpointing(kind.network, job.model, config)
            kind.network.activation_checkpointing_enable()
        objective = Objective(
            kind,
            divergence=DIVERGENCES[config.divergence],
            temperature=config.temperature,
            match=_match(kind, examples, rows, config),
        )
    key = _key(job, objective, rows, held_out, stop_after)
    return Prepared(
        job=job, kind=kind, objective=objective, rows=rows, held_out=held_out, stop_after=stop_after, key=key
    )


def run(prepared: Prepared, name: str) -> Trained:
    """Train ``prepared.kind.network``, from the checkpoint that a killed training of the same left.

    Args:
        prepared: What is trained.
        name: Of its checkpoint in ``job.root``, and of its logs in ``job.logs``.

    Raises:
        ConfigError: a step that cannot be divided among processes, a tracker that is not installed, or one without a
            place for its files.
        ModelError: training that diverged.
    """
    job, held_out = prepared.job, prepared.held_out
    if isinstance(prepared.kind, Static):  # solved, in a second, rather than trained
        history = solve_head(prepared.kind, prepared.rows, held_out.encoded, held_out.answers, job.config)
        return Trained(history=history, logits=row_logits(prepared.kind, held_out.encoded))
    checkpoints = Checkpoints(job.root / name, prepared.key, job.config.checkpoint_seconds) if job.root else None
    try:
        with seeded(job.seed):
            history = fit(
                prepared.objective,
                prepared.rows,
                config=job.config,
                epochs=job.epochs,
                seed=job.seed,
                held_out=held_out if held_out.encoded else None,
                stop_after=prepared.stop_after,
                checkpoints=checkpoints,
                logs=job.logs and job.logs / name,
                progress=job.progress,
            )
    except ModelError:
        if job.root is not None:
            shutil.rmtree(job.root, ignore_errors=True)  # it would diverge again from there
        raise
    return Trained(history=history, logits=row_logits(prepared.kind, held_out.encoded))


def _match(
    kind: StudentKind, examples: Sequence[Example], rows: Sequence[TrainingRow], config: StudentConfig
) -> HiddenMatch | None:
    """The matching of hidden states, where the lessons have any; what is frozen is matched when it is solved for."""
    states = [row.lesson.states for row in rows if row.lesson.states is not None]
    if not states:
        return None
    for e, row, one in zip(examples, rows, states, strict=True):
        read = row.encoded.options if kind.reads_options else 1
        if len(one) != read:
            raise DataError(
                f"row {e.id!r}: {len(one)} teacher state(s) for the {read} by which a student of kind {config.kind} reads "
                "the row; match a state of each option where it reads them one by one, else the state at the answer"
            )
    return None if isinstance(kind, Static) else HiddenMatch(kind, states[0].shape[1], config.hidden)


def _key(
    job: Job, objective: Objective, rows: Sequence[TrainingRow], held_out: HeldOut, stop_after: float | None
) -> str:
    """Hash of all that a training depends on: options, starting weights, rows, libraries and processes."""
    found = hashlib.sha256()
    options = job.config.model_dump_json(exclude=_NO_PART)
    versions = [metadata.version(name) for name in ("torch", "transformers", "accelerate")]
    devices = torch.cuda.is_available(), torch.get_num_threads(), process_count()
    found.update(repr((options, job.epochs, job.seed, stop_after, versions, devices)).encode())
    # Frozen ones too: factors that were trained beside other weights are another training's.
    for name, tensor in objective.state_dict().items():
        found.update(name.encode())
        found.update(tensor.cpu().contiguous().flatten().view(torch.uint8).numpy().tobytes())
    for row in rows:
        lesson = row.lesson
        found.update(repr((row.encoded, lesson.answer, lesson.weights)).encode())
        found.update(lesson.target_logits.tobytes())
        found.update(b"" if lesson.states is None else lesson.states.tobytes())
    found.update(repr((held_out.encoded, held_out.answers.tolist())).encode())
    return found.hexdigest()
