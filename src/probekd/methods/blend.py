"""blend-kd: targets stacked from the probe, the teacher's words and the student's own out-of-fold predictions."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from probekd.methods.single import of_logits
from probekd.methods.views import Evidence, ViewName
from probekd.probes.calibrate import fit_temperature
from probekd.probes.combine import pool_weights, pooled
from probekd.targets import SoftTargets

MEMBERS: tuple[ViewName, ...] = ("probe", "output_calibrated", "student_alone")


@dataclass(frozen=True, kw_only=True)
class Blend:
    """A logarithmic opinion pool of the members.

    Attributes:
        weights: (J,) not negative, the temperature included.
    """

    weights: np.ndarray

    @classmethod
    def fit(cls, logits: np.ndarray, answers: np.ndarray) -> Blend:
        """Weights and one temperature from out-of-fold logits (J, n, K) of labelled rows."""
        order = np.argsort([_loss(z, answers) for z in logits])
        weights = np.empty(len(logits))
        weights[order] = pool_weights(logits[order], answers)
        temperature = float(fit_temperature(pooled(weights, logits), answers)) if weights.any() else 1.0
        return cls(weights=weights / temperature)

    def logits(self, logits: np.ndarray) -> np.ndarray:
        """(n, K) from the members' (J, n, K)."""
        return pooled(self.weights, logits)


def _loss(logits: np.ndarray, answers: np.ndarray) -> float:
    from probekd.probes.calibrate import gold_losses

    return float(gold_losses(logits, answers).mean())


def blend(evidence: Evidence, members: Sequence[ViewName] = MEMBERS) -> SoftTargets:
    """Stack the members: weights for a labelled row are learned on the other folds, for the pool on all of them.

    Rows that no fold holds out keep their gold label, and have no say.
    """
    honest = np.stack([evidence.views[name].honest for name in members])
    answers, folds = evidence.answers, evidence.folds
    said = honest[0].copy()
    for f in np.unique(folds[folds >= 0]):
        rest, held = (folds != f) & (folds >= 0), folds == f
        said[held] = Blend.fit(honest[:, rest], answers[rest]).logits(honest[:, held])
    pool = np.stack([evidence.views[name].pool for name in members])
    scored = folds >= 0
    return of_logits(evidence, said, Blend.fit(honest[:, scored], answers[scored]).logits(pool))
