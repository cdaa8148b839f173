"""How many epochs a student needs, where there is no validation split: found on a fold of its labelled rows."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np

from probekd.files import read_json, write_json
from probekd.student.calibration import StudentCalibration, calibrate_student, logit_scale
from probekd.student.history import Epoch, best_epoch
from probekd.student.holdout import Watched
from probekd.student.kinds import StudentKind
from probekd.student.lessons import Lesson
from probekd.student.logits import row_logits
from probekd.student.processes import is_main
from probekd.student.training import Job, Trained, prepare, run
from probekd.tasks.base import Example
from probekd.teacher.load import quiet_transformers

# On these the logits of two students are compared.
SHARED_ROWS = 256


@dataclass(frozen=True, kw_only=True)
class Choice:
    """What a training without the held-out rows showed.

    Attributes:
        epochs: Passes after which the held-out rows' log-loss was lowest.
        calibration: Of the student as it was then.
        history: All of that training's epochs.
        shared: Some of the rows that it was trained on, as every later student is.
        scale: Of its logits there.
    """

    epochs: float
    calibration: StudentCalibration
    history: tuple[Epoch, ...]
    shared: tuple[Example, ...]
    scale: float

    def calibrate(self, kind: StudentKind) -> StudentCalibration:
        """The calibration of a student that was trained on all rows for as many epochs."""
        with quiet_transformers():
            encoded = kind.encode(self.shared)
        scale = logit_scale(row_logits(kind, encoded))
        # Logits that are all alike say nothing, at any temperature.
        return self.calibration.grown(scale / self.scale) if scale and self.scale else self.calibration


def choose_epochs(job: Job, examples: Sequence[Example], lessons: Mapping[str, Lesson], watched: Watched) -> Choice:
    """Train without the held-out rows and look when they were predicted best.

    Args:
        job: The student and how it is trained.
        examples: Training rows without the held-out ones.
        lessons: What each of them teaches, by id.
        watched: The rows that are held out.
    """
    assert watched.rows is not None
    prepared = prepare(job, examples, lessons, watching=watched.examples)
    kept = job.root and job.root / "choice.json"
    found = _read(kept, prepared.key) if kept else None
    if found is None:
        trained = run(prepared, "choice")
        shared = [row.encoded for row in prepared.rows[:SHARED_ROWS]]
        found = trained, logit_scale(row_logits(prepared.kind, shared))
        if kept and is_main():
            _write(kept, prepared.key, *found)
    trained, scale = found
    return Choice(
        epochs=trained.history[best_epoch(trained.history)].epoch,
        calibration=calibrate_student(trained.logits, prepared.held_out.answers, watched.rows),
        history=trained.history,
        shared=tuple(examples[:SHARED_ROWS]),
        scale=scale,
    )


def _write(path: Path, key: str, trained: Trained, scale: float) -> None:
    values = {
        "key": key,
        "history": [asdict(epoch) for epoch in trained.history],
        "logits": [row.tolist() for row in trained.logits],
        "scale": scale,
    }
    write_json(path, values)


def _read(path: Path, key: str) -> tuple[Trained, float] | None:
    if not path.is_file():
        return None
    values = read_json(path)
    if values["key"] != key:
        return None
    history = tuple(Epoch(**epoch) for epoch in values["history"])
    logits = [np.array(row, dtype=np.float32) for row in values["logits"]]
    return Trained(history=history, logits=logits), values["scale"]
