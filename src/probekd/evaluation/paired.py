"""Paired comparisons of two predictors on the same rows."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from scipy.stats import binomtest

from probekd.metrics import correct, log_losses

ROWS_AT_ONCE = 2_000_000  # resampled indices held at a time


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
    """95% percentile interval of the mean of paired differences (n,), rows resampled with replacement."""
    return _interval(_bootstrap_means(differences, resamples, seed))


def _interval(means: np.ndarray) -> list[float]:
    return [float(v) for v in np.quantile(means, [0.025, 0.975])]


def _bootstrap_means(differences: np.ndarray, resamples: int, seed: int) -> np.ndarray:
    generator = np.random.default_rng(seed)
    n = len(differences)
    step = max(1, ROWS_AT_ONCE // n)
    sizes = [min(step, resamples - done) for done in range(0, resamples, step)]
    return np.concatenate([differences[generator.integers(0, n, (size, n))].mean(1) for size in sizes])


def compare(
    split: str,
    names: tuple[str, str],
    probs: tuple[Sequence[np.ndarray], Sequence[np.ndarray]],
    answers: Sequence[int],
    *,
    resamples: int,
    seed: int,
) -> list[Comparison]:
    """Accuracy (bootstrap interval, exact McNemar p) and NLL (bootstrap interval and p) of a minus b."""
    a, b = probs
    hits_a, hits_b = correct(a, answers), correct(b, answers)
    only_a, only_b = int((hits_a & ~hits_b).sum()), int((hits_b & ~hits_a).sum())
    mcnemar = float(binomtest(only_a, only_a + only_b).pvalue) if only_a + only_b else 1.0
    accuracy = hits_a.astype(float) - hits_b.astype(float)
    nll = log_losses(a, answers) - log_losses(b, answers)
    nll_means = _bootstrap_means(nll, resamples, seed)
    tail = (1 + min(int((nll_means <= 0).sum()), int((nll_means >= 0).sum()))) / (1 + resamples)
    found = (
        ("accuracy", accuracy, bootstrap_interval(accuracy, resamples=resamples, seed=seed), mcnemar),
        ("nll", nll, _interval(nll_means), min(1.0, 2 * tail)),
    )
    return [
        Comparison(
            split=split, a=names[0], b=names[1], metric=metric, difference=float(d.mean()), ci=ci, p_value=p, n=len(d)
        )
        for metric, d, ci, p in found
    ]
