"""Choose among candidates by out-of-fold log-loss, nested, and say what the choice is worth outside."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from probekd.probes.calibrate import Calibration, calibrate, gold_losses
from probekd.probes.crossfit import CrossFit
from probekd.probes.unseen import fill, seen_temperature

# What nested predictions may ask for before the rows that choose are taken to flatter.
LUCK = 1.5


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


def flattery(said: np.ndarray, answers: np.ndarray, shares: np.ndarray) -> float:
    """How many times too sharp rows make the candidate that they choose, by what nested predictions ask for.

    Rows that choose among candidates flatter the one they choose, and so the temperature that they calibrate it with is
    far too low near chance (docs/probes-evidence.md). At least 1; and what is less than ``LUCK`` times is not corrected, since
    nested predictions were also chosen by fewer rows, and less well.

    Args:
        said: (n, K) logits of each fold's candidate over the temperature that the other folds, which chose it, fit to it;
            -inf for classes that its models never saw.
        answers: (n,).
        shares: (n, K) probabilities of such classes.
    """
    return max(1.0, float(seen_temperature(said[None], answers, shares)[0]) / LUCK)


def flattery_inside(
    say: Callable[[np.ndarray], np.ndarray], answers: np.ndarray, folds: np.ndarray, shares: np.ndarray
) -> float:
    """``flattery`` as far as some rows know it by themselves, one of their folds after another a stranger to the choice.

    Less than all of it, since models that predict the rows which choose have met the stranger's labels.

    Args:
        say: Chooses and calibrates by the rows marked in (n,) bool, and gives (n, K) logits of all rows.
        answers: (n,).
        folds: (n,).
        shares: (n, K) probabilities of classes that the rows' models never saw.
    """
    said = np.empty(shares.shape)
    for f in np.unique(folds):
        held = folds == f
        said[held] = say(~held)[held]
    return flattery(said, answers, shares)


@dataclass(frozen=True, kw_only=True)
class Choice:
    """The candidate that out-of-fold log-loss chose, and what the choice is worth on rows that took no part in it.

    Attributes:
        chosen: Index of the candidate, over all labelled rows.
        calibration: Of the chosen candidate, on predictions out of fold, softened by their ``flattery``.
        temperatures: (C,).
        losses: (C,) calibrated log-loss of every candidate: the scores that chose, so too good for the chosen one.
        honest: (n, K) calibrated logits; each fold's candidate and calibration were chosen by the other folds alone.
        by_fold: Candidate chosen for each outer fold.
        fold_calibrations: What it is calibrated by.
    """

    chosen: int
    calibration: Calibration
    temperatures: np.ndarray
    losses: np.ndarray
    honest: np.ndarray
    by_fold: tuple[int, ...]
    fold_calibrations: tuple[Calibration, ...]


def choose(
    fits: CrossFit,
    answers: np.ndarray,
    folds: np.ndarray,
    stronger: Sequence[Sequence[int]] | None = None,
    *,
    vector: bool = True,
) -> Choice:
    """Choose among candidates by calibrated out-of-fold log-loss, nested.

    Args:
        fits: Predictions of the candidates for n rows.
        answers: (n,) gold indices.
        folds: (n,).
        stronger: See ``lowest``; without it the lowest is chosen.
        vector: See ``calibrate``.
    """
    kin = stronger or [()] * len(fits.outer)
    losses = row_losses(fits, answers, folds)
    own = fits.shares[folds, np.arange(len(folds))]
    tempered, honest = np.empty(own.shape), np.empty(own.shape)
    by_fold, calibrations = [], []
    for f in range(int(folds.max()) + 1):
        seen, held = folds != f, folds == f
        inside = fits.inner[f][:, seen], losses.inner[f][:, seen], answers[seen], folds[seen], fits.shares[f, seen]
        best = lowest(losses.inner[f][:, seen], kin)
        fitted = calibrate(fits.inner[f, best][seen].astype(np.float64), answers[seen], folds[seen], vector=vector)
        temperature = seen_temperature(fits.inner[f, [best]][:, seen], answers[seen], fits.shares[f, seen])[0]
        tempered[held] = fits.outer[best][held] / temperature
        calibrations.append(fitted.softened(_flattery_inside(*inside, kin)))
        honest[held] = fill(calibrations[f].apply(fits.outer[best][held]), own[held])
        by_fold.append(best)
    chosen = lowest(losses.outer, kin)
    calibration = calibrate(fits.outer[chosen].astype(np.float64), answers, folds, vector=vector)
    return Choice(
        chosen=chosen,
        calibration=calibration.softened(flattery(tempered, answers, own)),
        temperatures=losses.temperatures,
        losses=losses.outer.mean(1),
        honest=honest,
        by_fold=tuple(by_fold),
        fold_calibrations=tuple(calibrations),
    )


def _flattery_inside(
    logits: np.ndarray,
    losses: np.ndarray,
    answers: np.ndarray,
    folds: np.ndarray,
    shares: np.ndarray,
    kin: Sequence[Sequence[int]],
) -> float:
    """``flattery_inside`` of the candidate that losses (C, n) choose, from logits (C, n, K)."""

    def say(rows: np.ndarray) -> np.ndarray:
        said = logits[lowest(losses[:, rows], kin)]
        return np.asarray(said / seen_temperature(said[None, rows], answers[rows], shares[rows])[0])

    return flattery_inside(say, answers, folds, shares)
