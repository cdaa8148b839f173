"""Paired differences over seeds and rows: how sure is a difference when both the labels drawn and the test rows are a sample?

The same test rows are predicted under every seed, so seeds and rows are crossed. Each resample draws both with
replacement (Owen 2007, Annals of Applied Statistics 1:386). Percentiles of such resamples are far too narrow with three or
five seeds: they cover about 80% where they claim 95%. So the resamples give a standard error alone, corrected for how
little few seeds vary in a resample, and the tails are Student's with Satterthwaite's degrees of freedom (1946, Biometrics
Bulletin 2:110), which are few where the seeds decide and many where the rows do.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from scipy.stats import t as student_t

ROWS_AT_ONCE = 2_000_000  # resampled row weights held at a time


@dataclass(frozen=True, kw_only=True)
class Difference:
    """A mean difference over seeds and rows.

    Attributes:
        difference: The mean.
        se: Its standard error.
        ci: 95% interval.
        p_value: Two-sided, of the mean being zero.
        seeds: S.
        rows: n.
    """

    difference: float
    se: float
    ci: list[float]
    p_value: float
    seeds: int
    rows: int

    def as_dict(self) -> dict[str, Any]:
        """JSON object."""
        return asdict(self)


def resampled_means(differences: np.ndarray, *, resamples: int, seed: int) -> np.ndarray:
    """Means (C, B) of resamples of seeds and rows, the same resamples for each of C comparisons (C, S, n)."""
    _, seeds, rows = differences.shape
    generator = np.random.default_rng(seed)
    step = max(1, ROWS_AT_ONCE // rows)
    found = []
    for done in range(0, resamples, step):
        count = min(step, resamples - done)
        # How often each seed and each row is drawn says all that its mean needs.
        of_seeds = generator.multinomial(seeds, [1 / seeds] * seeds, size=count) / seeds
        of_rows = generator.multinomial(rows, [1 / rows] * rows, size=count) / rows
        by_seed = np.einsum("csn,bn->bcs", differences, of_rows, optimize=True)
        found.append(np.einsum("bcs,bs->cb", by_seed, of_seeds))
    return np.concatenate(found, axis=1)


def hierarchical(differences: np.ndarray, *, resamples: int = 2000, seed: int = 0) -> list[Difference]:
    """Intervals of C mean differences from (C, S, n): seeds and rows are both samples.

    With one seed its own variation cannot be seen, and the interval is of that seed's students; so it is with one row.
    """
    means = differences.mean((1, 2))
    errors = resampled_means(differences, resamples=resamples, seed=seed).std(1)
    return [
        _difference(one, float(mean), float(error)) for one, mean, error in zip(differences, means, errors, strict=True)
    ]


def _difference(one: np.ndarray, mean: float, error: float) -> Difference:
    seeds, rows = one.shape
    of_seeds, of_rows = _variance_of_mean(one.mean(1)), _variance_of_mean(one.mean(0))
    total = of_seeds + of_rows
    if total == 0:
        return Difference(difference=mean, se=0.0, ci=[mean, mean], p_value=float(mean == 0), seeds=seeds, rows=rows)
    # What resampling sees of either variance is smaller by (S - 1) / S.
    seen = of_seeds * (seeds - 1) / seeds + of_rows * (rows - 1) / rows
    error *= float(np.sqrt(total / seen))
    freedom = total**2 / (of_seeds**2 / max(1, seeds - 1) + of_rows**2 / max(1, rows - 1))
    half = float(student_t.ppf(0.975, freedom)) * error
    return Difference(
        difference=mean,
        se=error,
        ci=[mean - half, mean + half],
        p_value=float(2 * student_t.sf(abs(mean) / error, freedom)),
        seeds=seeds,
        rows=rows,
    )


def _variance_of_mean(values: np.ndarray) -> float:
    """Estimated variance of a sample's mean; 0 where one value shows none."""
    return float(values.var(ddof=1) / len(values)) if len(values) > 1 else 0.0


def holm(p_values: Sequence[float]) -> list[float]:
    """P-values adjusted for their number (Holm 1979, Scandinavian Journal of Statistics 6:65), in the same order."""
    order = np.argsort(p_values, kind="stable")
    steps = np.array(p_values, dtype=float)[order] * np.arange(len(order), 0, -1)
    adjusted = np.empty(len(order))
    adjusted[order] = np.minimum(np.maximum.accumulate(steps), 1.0)
    return [float(p) for p in adjusted]
