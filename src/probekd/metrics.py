"""Scores of predicted distributions, by the definitions of the run-directory contract.

Probabilities come as one array a row, since rows may have different numbers of options.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TypedDict

import numpy as np

PROBABILITY_FLOOR = 1e-12
ECE_BINS = 15
Z_95 = 1.959963984540054


class Scores(TypedDict):
    """Accuracy with its 95% Wilson interval, NLL (nats), Brier, ECE, macro-F1, and the number of rows."""

    accuracy: float
    accuracy_ci: list[float]
    nll: float
    brier: float
    ece: float
    macro_f1: float
    n: int


def correct(probs: Sequence[np.ndarray], answers: Sequence[int]) -> np.ndarray:
    """Whether each row's most probable option is the gold one, (n,) bool; the first wins a tie."""
    return np.array([int(np.argmax(p)) == a for p, a in zip(probs, answers, strict=True)], dtype=bool)


def log_losses(probs: Sequence[np.ndarray], answers: Sequence[int]) -> np.ndarray:
    """Negative log-probability of each row's gold option in nats, (n,)."""
    return np.array([-math.log(max(float(p[a]), PROBABILITY_FLOOR)) for p, a in zip(probs, answers, strict=True)])


def wilson(hits: int, n: int) -> list[float]:
    """95% Wilson score interval of a proportion."""
    p, z = hits / n, Z_95
    centre = (p + z * z / (2 * n)) / (1 + z * z / n)
    half = z * math.sqrt(p * (1 - p) / n + z * z / (4 * n * n)) / (1 + z * z / n)
    return [centre - half, centre + half]


def calibration_bins(confidence: np.ndarray, hits: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Rows, mean top probability and accuracy of each of the ECE's 15 equal-width bins; zeros where a bin is empty."""
    bins = np.minimum((confidence * ECE_BINS).astype(int), ECE_BINS - 1)
    counts = np.bincount(bins, minlength=ECE_BINS)
    rows = np.maximum(counts, 1)
    confident, accurate = np.bincount(bins, confidence, ECE_BINS) / rows, np.bincount(bins, hits, ECE_BINS) / rows
    return counts, confident, accurate


def expected_calibration_error(confidence: np.ndarray, hits: np.ndarray) -> float:
    """ECE over 15 equal-width bins of the top probability."""
    counts, confident, accurate = calibration_bins(confidence, hits)
    return float((counts * np.abs(confident - accurate)).sum() / counts.sum())


def macro_f1(predicted: np.ndarray, answers: np.ndarray) -> float:
    """Mean F1 over the classes that occur among answers or predictions."""
    scores = []
    for c in np.union1d(predicted, answers):
        hits = np.sum((predicted == c) & (answers == c))
        scores.append(2 * hits / (np.sum(predicted == c) + np.sum(answers == c)))
    return float(np.mean(scores))


def score(probs: Sequence[np.ndarray], answers: Sequence[int]) -> Scores:
    """All scores of labelled rows; ``answers`` are 0-based and none is -1."""
    gold = np.asarray(answers)
    hits = correct(probs, answers)
    brier = float(np.mean([((p - np.eye(len(p))[a]) ** 2).sum() for p, a in zip(probs, answers, strict=True)]))
    return Scores(
        accuracy=float(hits.mean()),
        accuracy_ci=wilson(int(hits.sum()), len(gold)),
        nll=float(log_losses(probs, answers).mean()),
        brier=brier,
        ece=expected_calibration_error(np.array([p.max() for p in probs]), hits),
        macro_f1=macro_f1(np.array([int(np.argmax(p)) for p in probs]), gold),
        n=len(gold),
    )
