"""Choose among candidates by out-of-fold log-loss, nested, and say what the choice is worth outside."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from probekd.probes.calibrate import Calibration, calibrate, gold_losses
from probekd.probes.crossfit import CrossFit
from probekd.probes.unseen import fill, seen_temperature


@dataclass(frozen=True, kw_only=True)
class RowLosses:
    """Log-losses of C candidates, each with its own temperature.

    Attributes:
        outer: (C, n) of predictions out of fold.
        inner: (F, C, n) of predictions by models that left fold f out too; NaN on the rows of f.
        temperatures: (C,) of ``outer``.
    """

    outer: np.ndarray
    inner: np.ndarray
    temperatures: np.ndarray


def row_losses(fits: CrossFit, answers: np.ndarray, folds: np.ndarray) -> RowLosses:
    """Score every candidate, row by row."""
    outer, temperatures = _losses(fits.outer, answers, fits.shares[folds, np.arange(len(folds))])
    inner = np.full((len(fits.inner), *outer.shape), np.nan, dtype=np.float32)
    for f, logits in enumerate(fits.inner):
        seen = folds != f
        inner[f][:, seen], _ = _losses(logits[:, seen], answers[seen], fits.shares[f, seen])
    return RowLosses(outer=outer.astype(np.float32), inner=inner, temperatures=temperatures)


def _losses(logits: np.ndarray, answers: np.ndarray, shares: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Losses (C, n) of logits (C, n, K), each candidate with its own temperature, and the temperatures (C,)."""
    temperatures = seen_temperature(logits, answers, shares)
    return gold_losses(fill(logits / temperatures[:, None, None], shares), answers), temperatures


def join(parts: Sequence[RowLosses]) -> RowLosses:
    """The losses of one set of candidates from those of several."""
    return RowLosses(
        outer=np.concatenate([p.outer for p in parts]),
        inner=np.concatenate([p.inner for p in parts], axis=1),
        temperatures=np.concatenate([p.temperatures for p in parts]),
    )


def lowest(losses: np.ndarray, stronger: Sequence[Sequence[int]]) -> int:
    """The candidate with the lowest mean loss, or the strongest of its kin that is within one standard error of it.

    The error is that of the paired difference, since candidates are scored on the same rows: theirs are far more alike
    than their losses are certain (Hastie, Tibshirani and Friedman 2009, 7.10, use the unpaired one).

    Args:
        losses: (C, n).
        stronger: For each candidate those that differ from it by a stronger penalty alone, weakest first.
    """
    best = int(losses.mean(1).argmin())
    for other in reversed(stronger[best]):
        difference = losses[other] - losses[best]
        if difference.mean() <= difference.std() / len(difference) ** 0.5:
            return other
    return best


def by_strength(strengths: int) -> list[range]:
    """Kin for ``lowest`` where candidates are ascending strengths of one reader: those above each."""
    return [range(i + 1, strengths) for i in range(strengths)]


def wins(losses: np.ndarray, rival: np.ndarray, *, errors: float = 1.0) -> bool:
    """Whether losses (n,) are below the rival's by more than so many standard errors of the paired difference."""
    gain = rival - losses
    return bool(gain.mean() > errors * gain.std() / len(gain) ** 0.5)


@dataclass(frozen=True, kw_only=True)
class Choice:
    """The candidate that out-of-fold log-loss chose, and what the choice is worth on rows that took no part in it.

    Attributes:
        chosen: Index of the candidate, over all labelled rows.
        calibration: Of the chosen candidate, on predictions out of fold.
        temperatures: (C,).
        losses: (C,) calibrated log-loss of every candidate: the scores that chose, so too good for the chosen one.
        honest: (n, K) calibrated logits; each fold's candidate and calibration were chosen by the other folds alone.
        by_fold: Candidate chosen for each outer fold.
    """

    chosen: int
    calibration: Calibration
    temperatures: np.ndarray
    losses: np.ndarray
    honest: np.ndarray
    by_fold: tuple[int, ...]


def choose(
    fits: CrossFit, answers: np.ndarray, folds: np.ndarray, stronger: Sequence[Sequence[int]] | None = None
) -> Choice:
    """Choose among candidates by calibrated out-of-fold log-loss, nested; without ``stronger``, the lowest."""
    kin = stronger or [()] * len(fits.outer)
    losses = row_losses(fits, answers, folds)
    honest = np.empty(fits.outer.shape[1:])
    by_fold = []
    for f in range(int(folds.max()) + 1):
        seen, held = folds != f, folds == f
        best = lowest(losses.inner[f][:, seen], kin)
        fitted = calibrate(fits.inner[f, best][seen].astype(np.float64), answers[seen], folds[seen])
        honest[held] = fill(fitted.apply(fits.outer[best][held]), fits.shares[f, held])
        by_fold.append(best)
    chosen = lowest(losses.outer, kin)
    return Choice(
        chosen=chosen,
        calibration=calibrate(fits.outer[chosen].astype(np.float64), answers, folds),
        temperatures=losses.temperatures,
        losses=losses.outer.mean(1),
        honest=honest,
        by_fold=tuple(by_fold),
    )
