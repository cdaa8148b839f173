"""One temperature for a student, fitted on rows that it was not trained on."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np

from probekd.metrics import Scores, score
from probekd.probes.calibrate import fit_temperature
from probekd.student.logits import padded
from probekd.targets import softmax

Rows = Literal["validation", "held out"]


@dataclass(frozen=True, slots=True, kw_only=True)
class StudentCalibration:
    """What a student's logits are divided by, and what that does.

    Attributes:
        temperature: Fitted on the rows below, times ``growth``; 1 changes nothing.
        rows: ``validation``: the labelled rows of that split. ``held out``: a fold of the labelled training rows, and a
            student trained in the same way on the rest; the figures below are that student's.
        n: Number of these rows.
        nll_before: Mean log-loss there at temperature 1, in nats.
        nll_after: Mean log-loss there at the temperature.
        ece_before: Expected calibration error there at temperature 1.
        ece_after: Expected calibration error there at the temperature.
        growth: How much larger this student's logits are than those that the temperature was fitted to.
        folded: Whether the saved weights have been divided by it already (``fold.fold_temperature``).
    """

    temperature: float
    rows: Rows
    n: int
    nll_before: float
    nll_after: float
    ece_before: float
    ece_after: float
    growth: float = 1.0
    folded: bool = False

    def grown(self, growth: float) -> StudentCalibration:
        """The calibration of a student whose logits are so many times larger: more rows and steps make them so."""
        return replace(self, temperature=self.temperature * growth, growth=growth)


def student_temperature(logits: Sequence[np.ndarray], answers: np.ndarray) -> float:
    """The temperature of lowest log-loss, as if one more row had been answered evenly.

    Without that row, a student that gets a few held-out rows all right would be certain of everything.

    Args:
        logits: (k_i,) of each row.
        answers: (n,).
    """
    return float(fit_temperature(padded(logits), answers))


def logit_scale(logits: Sequence[np.ndarray]) -> float:
    """Root of the mean square by which logits (k_i,) depart from their row's mean."""
    return float(np.sqrt(np.mean(np.concatenate([(row - row.mean()) ** 2 for row in logits]))))


def calibrated_log_loss(logits: Sequence[np.ndarray], answers: np.ndarray) -> float:
    """Mean log-loss at the temperature that a student with these logits would get: what early stopping looks at.

    Fine-tuned students grow too sure long before they stop getting better, and a temperature takes that back; the
    log-loss before it would end their training early.
    """
    return _scores(logits, answers, student_temperature(logits, answers))["nll"]


def calibrate_student(logits: Sequence[np.ndarray], answers: np.ndarray, rows: Rows) -> StudentCalibration:
    """Fit the temperature and score it on the same rows, which for one number is hardly optimistic."""
    temperature = student_temperature(logits, answers)
    before, after = (_scores(logits, answers, t) for t in (1.0, temperature))
    return StudentCalibration(
        temperature=temperature,
        rows=rows,
        n=len(answers),
        nll_before=before["nll"],
        nll_after=after["nll"],
        ece_before=before["ece"],
        ece_after=after["ece"],
    )


def _scores(logits: Sequence[np.ndarray], answers: np.ndarray, temperature: float) -> Scores:
    return score([softmax(row / temperature) for row in logits], answers.tolist())
