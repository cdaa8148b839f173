"""What the student can do by itself: a linear head on its frozen embedding, cross-fitted like a probe."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from probekd.config import ProbeConfig
from probekd.probes.calibrate import Calibration, sharpness
from probekd.probes.choose import by_strength, choose
from probekd.probes.crossfit import crossfit, fit_folds, unseen_by
from probekd.probes.families import Fit
from probekd.probes.fit import presence
from probekd.probes.unseen import class_counts, fill, mean_of_models, unseen_shares
from probekd.tasks.base import Example


@dataclass(frozen=True, kw_only=True)
class Alone:
    """A cross-fitted head.

    Attributes:
        honest: (m, K) calibrated out-of-fold logits of the rows that a fold holds out, -inf beyond a row's options.
        answers: (n,) of all labelled rows.
        fit: The heads that each leave a fold out.
        calibration: Fitted on out-of-fold logits.
        sharpness: What the mean of the heads is multiplied by as it is calibrated (``calibrate.sharpness``).
        strength: The l2 that all labelled rows chose.
    """

    honest: np.ndarray
    answers: np.ndarray
    fit: Fit
    calibration: Calibration
    sharpness: float
    strength: float

    def logits(self, features: np.ndarray, examples: Sequence[Example]) -> list[np.ndarray]:
        """Calibrated logits (k_i,) of rows that the heads were not trained on: their mean."""
        if not examples:
            return []
        present = presence(examples, max(len(e.options) for e in examples))
        width = present.shape[1]
        said = mean_of_models(self.fit.logits(_as_states(features)))[:, :width]
        # A row may have an option that no labelled row had.
        said = np.pad(said, ((0, 0), (0, width - said.shape[1])), constant_values=-np.inf)
        everything = np.ones((1, len(self.answers)), dtype=bool)
        shares = unseen_shares(class_counts(self.answers, everything, width)[:, :width], present)
        if features.shape[1] > 1:  # one scorer for every option: it has seen all there are
            shares = np.zeros_like(shares)
        calibrated = fill(self.calibration.softened(1 / self.sharpness).apply(said), shares)
        return [row[: len(e.options)] for row, e in zip(calibrated, examples, strict=True)]


def fit_alone(features: np.ndarray, examples: Sequence[Example], folds: np.ndarray, config: ProbeConfig) -> Alone:
    """Cross-fit a linear head on embeddings; the folds, the strengths and the nested choice are the probe's own.

    Args:
        features: (n, 1, d) for classification, (n, k, d) for multiple choice.
        examples: The labelled rows, in the probe's order.
        folds: (n,) the probe's folds; rows of fold -1 train every head and are not predicted.
        config: Strengths and tolerance.
    """
    answers, scored = np.array([e.answer for e in examples]), folds >= 0
    width = max(len(e.options) for e in examples)
    present = presence(examples, width)
    x = _as_states(features if features.shape[1] == 1 else features[:, :width])
    strengths = sorted(config.l2)
    fits = crossfit(x, answers, present, folds, strengths, tolerance=config.tolerance)
    choice = choose(fits, answers[scored], folds[scored], by_strength(len(strengths)), vector=features.shape[1] == 1)
    strength = strengths[choice.chosen]
    each = unseen_by(fits.inner[:, choice.chosen], folds[scored])
    return Alone(
        honest=choice.honest,
        answers=answers,
        fit=fit_folds(x, answers, present, folds, strength, tolerance=config.tolerance),
        calibration=choice.calibration,
        sharpness=sharpness(each, mean_of_models(each), answers[scored]),
        strength=strength,
    )


def _as_states(features: np.ndarray) -> np.ndarray:
    return np.ascontiguousarray(features[:, 0] if features.shape[1] == 1 else features)
