"""Paired comparisons of two predictors on the same rows.

Differences of log-loss are skewed and have heavy tails, where percentile intervals are too short at a hundred rows and
BCa and equal-tailed bootstrap-t ones shorter still in what they cover: their tails follow a skewness that a hundred rows
do not show. The symmetric bootstrap-t interval (Hall 1988, JRSS B 50:35) errs by O(1/n^2) and to the wide side.
studies/simulations.py counts how often the intervals hold the truth.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from scipy.stats import binomtest

from probekd.metrics import Z_95, correct, log_losses

ROWS_AT_ONCE = 250_000  # resampled rows held at a time: few enough to stay in the processor's cache
# Of the sample's own standard error: a resample that misses the few rows that differ would else divide by nothing.
SMALLEST_ERROR = 0.25


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """``a`` minus ``b`` on the rows of one split: a positive accuracy and a negative nll difference favour ``a``."""

    split: str
    a: str
    b: str
    metric: str
    difference: float
    ci: list[float]
    p_value: float
    n: int

    def as_dict(self) -> dict[str, Any]:
        """The contract's JSON object."""
        return asdict(self)


def bootstrap_interval(differences: np.ndarray, *, resamples: int, seed: int) -> list[float]:
    """95% symmetric bootstrap-t interval of the mean of paired differences (n,), rows resampled with replacement."""
    return _interval(differences, _distances(differences, resamples, seed), 1.0)


def shared_training(folds: int) -> float:
    """How many times wider an interval must be when each row was predicted by the models that left out its fold.

    Two folds' models share most of their training rows, so their errors go together, and a cross-validated mean varies
    more than its rows, resampled with the models held fixed, say. Nothing in one cross-validation tells by how much
    (Bengio and Grandvalet 2004, JMLR 5:1089). Nadeau and Bengio (2003, Machine Learning 52:239) take the correlation of
    two folds' means to be the share of rows tested, 1/F: the variance of the mean is then 1 + (F - 1) / F times that of
    independent rows. studies/simulations.py counts what that covers. 1 for predictors that were not trained on the rows.
    """
    return float(np.sqrt(1 + (folds - 1) / folds))


def by_group(differences: np.ndarray, groups: Sequence[str]) -> np.ndarray:
    """(G,) numbers, one a group of rows, that have the mean of the differences (n,) and vary as the groups' sums do.

    The linearised ratio of the groups' sums to their sizes (Cochran 1977, Sampling Techniques, 6.4): resampling them is
    resampling whole groups.
    """
    numbers: dict[str, int] = {}
    index = [numbers.setdefault(key, len(numbers)) for key in groups]
    sums = np.bincount(index, weights=differences - differences.mean())
    return np.asarray(differences.mean() + sums * len(sums) / len(differences))


def proportions_interval(only_a: int, only_b: int, n: int, *, widening: float = 1.0) -> list[float]:
    """95% interval of a difference of paired proportions, from the n rows' counts of those that one alone got right.

    A Wald interval with one row added to either count (Bonett and Price 2012, JEBS 37:479), which Fagerland, Lydersen
    and Laake (2014, Statistics in Medicine 33:2850) recommend; unlike the bootstrap's it has a width when the counts
    are zero.
    """
    a, b = (only_a + 1) / (n + 2), (only_b + 1) / (n + 2)
    half = widening * Z_95 * float(np.sqrt((a + b - (a - b) ** 2) / (n + 2)))
    return [max(-1.0, a - b - half), min(1.0, a - b + half)]


def _standard_error(differences: np.ndarray) -> float:
    return float(differences.std() / len(differences) ** 0.5)


def _interval(differences: np.ndarray, distances: np.ndarray, widening: float) -> list[float]:
    mean = float(differences.mean())
    half = widening * float(np.quantile(distances, 0.95)) * _standard_error(differences)
    return [mean - half, mean + half]


def _distances(differences: np.ndarray, resamples: int, seed: int) -> np.ndarray:
    """|t*| (resamples,): how far each resample's mean is from the sample's, in the resample's own standard errors."""
    error = _standard_error(differences)
    if error == 0:
        return np.zeros(resamples)
    generator = np.random.default_rng(seed)
    n = len(differences)
    # Standardised, so that the sum of squares keeps its digits; single precision halves the time of 10,000 rows.
    rows = ((differences - differences.mean()) / differences.std()).astype(np.float32)
    step = max(1, ROWS_AT_ONCE // n)
    found = []
    for done in range(0, resamples, step):
        drawn = rows[generator.integers(0, n, (min(step, resamples - done), n), dtype=np.int32)]
        means = drawn.mean(1, dtype=np.float64)
        variances = np.einsum("rn,rn->r", drawn, drawn).astype(np.float64) / n - means**2
        found.append(np.abs(means) / np.sqrt(np.maximum(variances, SMALLEST_ERROR**2) / n))
    return np.concatenate(found)


def compare(
    split: str,
    names: tuple[str, str],
    probs: tuple[Sequence[np.ndarray], Sequence[np.ndarray]],
    answers: Sequence[int],
    *,
    resamples: int,
    seed: int,
    folds: int = 1,
    groups: Sequence[str] | None = None,
) -> list[Comparison]:
    """Accuracy (adjusted Wald interval, exact McNemar p) and NLL (bootstrap-t interval and p) of a minus b.

    Args:
        split: Of the rows.
        names: Of a and b.
        probs: Distributions of the n rows by a and by b.
        answers: (n,).
        resamples: Of the bootstrap.
        seed: Of the bootstrap.
        folds: Number of folds of predictions out of fold, whose intervals are widened by ``shared_training``, and so is
            the bootstrap's p; McNemar's test is of the predictions as they are.
        groups: (n,) keys of rows that are no independent evidence, such as variants of one question; each row is its own
            without.
    """
    widening = shared_training(folds)
    a, b = probs
    hits_a, hits_b = correct(a, answers), correct(b, answers)
    only_a, only_b = int((hits_a & ~hits_b).sum()), int((hits_b & ~hits_a).sum())
    mcnemar = float(binomtest(only_a, only_a + only_b).pvalue) if only_a + only_b else 1.0
    accuracy = hits_a.astype(float) - hits_b.astype(float)
    nll = log_losses(a, answers) - log_losses(b, answers)
    n = len(nll)
    alike = 1.0
    if groups is not None:
        grouped, nll = by_group(accuracy, groups), by_group(nll, groups)
        alike = max(1.0, _standard_error(grouped) / (_standard_error(accuracy) or 1.0))
    distances = _distances(nll, resamples, seed)
    error = _standard_error(nll)
    at_least = int((distances * error * widening >= abs(nll.mean())).sum())
    found = (
        ("accuracy", accuracy, proportions_interval(only_a, only_b, n, widening=widening * alike), mcnemar),
        ("nll", nll, _interval(nll, distances, widening), (1 + at_least) / (1 + resamples)),
    )
    return [
        Comparison(
            split=split, a=names[0], b=names[1], metric=metric, difference=float(d.mean()), ci=ci, p_value=p, n=n
        )
        for metric, d, ci, p in found
    ]
