"""Targets from one source: gold labels, a view of the teacher, or a student trained on the labels."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np

from probekd.methods.views import Evidence, ViewName
from probekd.targets import SoftTargets, cross_fitted_targets, gold_targets

SMOOTHING = 0.2
"""Probability that a smoothed target spreads evenly over a row's options (Szegedy et al., arXiv 1512.00567).

``student.alpha`` mixes the gold label back in, as with every other target, so that what is spread in the end is
``(1 - alpha) * SMOOTHING``: the usual 0.1 at the default, and other strengths where a study tries other alphas.
"""


def gold(evidence: Evidence) -> SoftTargets:
    """One-hot targets of the labelled rows."""
    rows = evidence.labelled
    return gold_targets([e.id for e in rows], evidence.answers.tolist(), [len(e.options) for e in rows])


def smoothed(evidence: Evidence) -> SoftTargets:
    """Gold labels with ``SMOOTHING`` taken off and spread over all options."""
    hard = gold(evidence)
    logits = tuple(np.log((1 - SMOOTHING) * p + SMOOTHING / len(p)) for p in hard.probs)
    return replace(hard, logits=logits, sources=("smoothed",) * len(hard))


def of_view(name: ViewName) -> Callable[[Evidence], SoftTargets]:
    """A view as it is: out-of-fold logits of the labelled rows, and what it says of the pool."""

    def make(evidence: Evidence) -> SoftTargets:
        view = evidence.views[name]
        return of_logits(evidence, view.honest, view.pool)

    return make


def in_sample(evidence: Evidence) -> SoftTargets:
    """The ablation: labelled rows are told what models say that were trained on them."""
    n, m = len(evidence.labelled), len(evidence.pool)
    made = of_view("probe_in_sample")(evidence)
    return replace(made, sources=("pooled",) * (n + m), folds=(-1,) * (n + m))


def self_train(evidence: Evidence) -> SoftTargets:
    """Gold labels, and for the pool what a student says that was trained on them: the baseline without a teacher."""
    hard = gold(evidence)
    said = of_logits(replace(evidence, labelled=(), folds=evidence.folds[:0]), np.empty((0, 1)), _pool(evidence))
    columns = ("ids", "splits", "logits", "sources", "folds")
    return SoftTargets(**{name: getattr(hard, name) + getattr(said, name) for name in columns})


def _pool(evidence: Evidence) -> np.ndarray:
    return evidence.views["student"].pool


def of_logits(evidence: Evidence, honest: np.ndarray, pool: np.ndarray) -> SoftTargets:
    """Targets from padded logits: (n, K) out of fold and (m, K) of the pool."""
    return cross_fitted_targets(
        [e.id for e in evidence.labelled],
        [row[: len(e.options)] for row, e in zip(honest, evidence.labelled, strict=True)],
        evidence.folds.tolist(),
        [e.id for e in evidence.pool],
        [row[: len(e.options)] for row, e in zip(pool, evidence.pool, strict=True)],
    )
