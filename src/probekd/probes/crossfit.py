"""Cross-fitting: every labelled row is predicted by a model that never saw it, and chosen for by rows that are not it.

Strictly nested choice needs, for each outer fold f, models that saw neither f nor the inner fold g they predict. The
model that leaves {f, g} out serves both (f, g) and (g, f), so F folds need F + F(F-1)/2 fits and not F + F(F-1).
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import combinations

import numpy as np
import torch

from probekd.probes.calibrate import fit_temperature, gold_losses
from probekd.probes.logistic import LinearFit, solve


@dataclass(frozen=True, kw_only=True)
class CrossFit:
    """Predictions of C candidates for the n labelled rows.

    Attributes:
        outer: (C, n, K) logits of each row from the model that left its fold out.
        inner: (F, C, n, K): as ``outer``, from models that also left fold f out; rows of f itself are NaN.
    """

    outer: np.ndarray
    inner: np.ndarray

    def __post_init__(self) -> None:
        assert self.outer.shape == self.inner.shape[1:], (self.outer.shape, self.inner.shape)


def untrained(logits: np.ndarray, folds: np.ndarray) -> CrossFit:
    """Candidates (C, n, K) that used no labels: the same predictions in every fold."""
    inner = np.stack([np.where((folds == f)[None, :, None], np.nan, logits) for f in range(folds.max() + 1)])
    return CrossFit(outer=logits, inner=inner)


def concatenate(parts: list[CrossFit]) -> CrossFit:
    """One set of candidates from several."""
    return CrossFit(
        outer=np.concatenate([p.outer for p in parts]), inner=np.concatenate([p.inner for p in parts], axis=1)
    )


def crossfit(
    states: np.ndarray,
    answers: np.ndarray,
    present: np.ndarray,
    folds: np.ndarray,
    l2: tuple[float, ...],
    *,
    tolerance: float,
) -> CrossFit:
    """Cross-fit logistic probes of all strengths on one depth; candidate order follows ``l2``.

    Args:
        states: (n, d) or (n, k, d) float32.
        answers: (n,) gold indices.
        present: (n, K) bool.
        folds: (n,) fold of each row.
        l2: Strengths.
        tolerance: See ``solve``.
    """
    count = int(folds.max()) + 1
    left_out: list[tuple[int, ...]] = [(f,) for f in range(count)] + list(combinations(range(count), 2))
    train = np.stack([~np.isin(folds, out) for out in left_out])
    fit = _fit(states, answers, present, train, l2, tolerance)
    logits = fit.logits(torch.as_tensor(states)).numpy().reshape(len(left_out), len(l2), len(folds), present.shape[1])
    logits = np.where(present, logits, -np.inf).astype(np.float32)
    outer = np.empty(logits.shape[1:], dtype=np.float32)
    inner = np.full((count, *logits.shape[1:]), np.nan, dtype=np.float32)
    for number, out in enumerate(left_out):
        if len(out) == 1:
            outer[:, folds == out[0]] = logits[number][:, folds == out[0]]
        else:
            for f, g in (out, out[::-1]):
                inner[f][:, folds == g] = logits[number][:, folds == g]
    return CrossFit(outer=outer, inner=inner)


def fit_folds(
    states: np.ndarray, answers: np.ndarray, present: np.ndarray, folds: np.ndarray, l2: float, *, tolerance: float
) -> LinearFit:
    """The F models at one strength that each leave one fold out."""
    train = np.stack([folds != f for f in range(int(folds.max()) + 1)])
    return _fit(states, answers, present, train, (l2,), tolerance)


def _fit(
    states: np.ndarray,
    answers: np.ndarray,
    present: np.ndarray,
    train: np.ndarray,
    l2: tuple[float, ...],
    tolerance: float,
) -> LinearFit:
    return solve(
        torch.as_tensor(states),
        torch.as_tensor(answers),
        torch.as_tensor(present),
        torch.as_tensor(train.repeat(len(l2), axis=0)),
        torch.tensor(l2, dtype=torch.float32).repeat(len(train)),
        tolerance=tolerance,
    )


@dataclass(frozen=True, kw_only=True)
class Choice:
    """The candidate that out-of-fold log-loss chose, and what the choice is worth on rows that took no part in it.

    Attributes:
        chosen: Index of the candidate with the lowest log-loss, temperature fitted, over all labelled rows.
        temperature: Its temperature.
        losses: (C,) calibrated log-loss of every candidate: the scores that chose, so too good for the chosen one.
        temperatures: (C,).
        honest: (n, K) calibrated logits; each fold's candidate and temperature were chosen by the other folds alone.
        by_fold: Candidate chosen for each outer fold.
    """

    chosen: int
    temperature: float
    losses: np.ndarray
    temperatures: np.ndarray
    honest: np.ndarray
    by_fold: tuple[int, ...]


def choose(fits: CrossFit, answers: np.ndarray, folds: np.ndarray) -> Choice:
    """Choose among candidates by calibrated out-of-fold log-loss, nested."""
    temperatures = fit_temperature(fits.outer, answers)
    losses = gold_losses(fits.outer / temperatures[:, None, None], answers).mean(-1)
    honest = np.empty(fits.outer.shape[1:])
    by_fold = []
    for f in range(int(folds.max()) + 1):
        seen, held = folds != f, folds == f
        logits, gold = fits.inner[f][:, seen], answers[seen]
        local = fit_temperature(logits, gold)
        best = int(gold_losses(logits / local[:, None, None], gold).mean(-1).argmin())
        honest[held] = fits.outer[best][held] / local[best]
        by_fold.append(best)
    chosen = int(losses.argmin())
    return Choice(
        chosen=chosen,
        temperature=float(temperatures[chosen]),
        losses=losses,
        temperatures=temperatures,
        honest=honest,
        by_fold=tuple(by_fold),
    )
