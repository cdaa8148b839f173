"""How many epochs a student needs, where there is no validation split: found on a fold of its labelled rows."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np

from probekd.files import read_json, write_json
from probekd.student.calibration import StudentCalibration, calibrate_student
from probekd.student.history import Epoch, best_epoch
from probekd.student.holdout import Watched
from probekd.student.lessons import Lesson
from probekd.student.processes import is_main
from probekd.student.training import Job, Trained, prepare, run
from probekd.tasks.base import Example


@dataclass(frozen=True, kw_only=True)
class Choice:
    """What a training without the held-out rows showed.

    Attributes:
        epochs: Passes after which the held-out rows' log-loss was lowest.
        calibration: Of the student as it was then.
        history: All of that training's epochs.
    """

    epochs: float
    calibration: StudentCalibration
    history: tuple[Epoch, ...]


def choose_epochs(
    job: Job, examples: Sequence[Example], lessons: Mapping[str, Lesson], watched: Watched, root: Path | None
) -> Choice:
    """Train without the held-out rows and look when they were predicted best.

    Args:
        job: The student and how it is trained.
        examples: Training rows without the held-out ones.
        lessons: What each of them teaches, by id.
        watched: The rows that are held out.
        root: Where its checkpoints and its outcome are kept; None = nowhere.
    """
    assert watched.rows is not None
    prepared = prepare(job, examples, lessons, watching=watched.examples)
    kept = root and root / "choice.json"
    trained = _read(kept, prepared.key) if kept else None
    if trained is None:
        trained = run(prepared, root and root / "choice")
        if kept and is_main():
            _write(kept, prepared.key, trained)
    return Choice(
        epochs=trained.history[best_epoch(trained.history)].epoch,
        calibration=calibrate_student(trained.logits, prepared.held_out.answers, watched.rows),
        history=trained.history,
    )


def _write(path: Path, key: str, trained: Trained) -> None:
    history = [asdict(epoch) for epoch in trained.history]
    write_json(path, {"key": key, "history": history, "logits": [row.tolist() for row in trained.logits]})


def _read(path: Path, key: str) -> Trained | None:
    if not path.is_file():
        return None
    values = read_json(path)
    if values["key"] != key:
        return None
    history = tuple(Epoch(**epoch) for epoch in values["history"])
    return Trained(history=history, logits=[np.array(row, dtype=np.float32) for row in values["logits"]])
