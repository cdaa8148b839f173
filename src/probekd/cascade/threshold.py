"""How sure the student must be to answer by itself: a threshold whose agreement with the probe has a lower bound."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from scipy.special import bdtrc

STEPS = 20


@dataclass(frozen=True, kw_only=True)
class Threshold:
    """A confidence, and what held-out rows say about the rows above it.

    Attributes:
        confidence: The student answers a row when its top probability is greater than this.
        kept: Held-out rows that it would have answered.
        agreed: Those of them on which its pick is the probe's.
        rows: Held-out rows.
        agreement: The agreement that the kept rows have at least, ...
        level: ... with this confidence.
    """

    confidence: float
    kept: int
    agreed: int
    rows: int
    agreement: float
    level: float


def fewest_rows(agreement: float, level: float) -> int:
    """Rows without which no threshold can pass, though all of them agree."""
    return math.ceil(math.log(1 - level) / math.log(agreement))


def choose_threshold(
    confidence: np.ndarray, agrees: np.ndarray, *, agreement: float = 0.95, level: float = 0.95
) -> Threshold | None:
    """The lowest confidence above which student and probe agree on at least ``agreement`` of the rows to come.

    A set of rows passes when its exact one-sided binomial (Clopper-Pearson) lower bound at ``level`` reaches
    ``agreement``. Many sets are tried, so they are tried in an order that is fixed beforehand, from the most confident
    third of the rows down to all of them in even steps, and the first that fails ends the search: with this fixed
    sequence the chance that any set passes wrongly is still at most 1 - level (Learn then Test, arXiv 2110.01052,
    section 3). Only the counts are fixed beforehand and the thresholds are the confidences found there; rows strictly
    above one of them are a sample of all rows above it, and the level holds wherever agreement does not fall as
    confidence rises.

    Args:
        confidence: (n,) the student's top probability on rows that neither it nor the probe learned from.
        agrees: (n,) bool, whether its pick is the probe's.
        agreement: Wanted, in (0, 1).
        level: Confidence of the bound, in (0, 1).

    Returns:
        The threshold, or None where not even the first set passes.
    """
    order = np.argsort(-confidence, kind="stable")
    ranked, hits = confidence[order], np.cumsum(agrees[order])
    n, fewest = len(ranked), fewest_rows(agreement, level)
    if n < fewest:
        return None
    found = None
    for count in np.unique(np.linspace(max(fewest, n // 3), n, STEPS).astype(int)):
        # Every probability is above 0, so that all rows are kept there.
        bar = float(ranked[count]) if count < n else 0.0
        kept = int(np.searchsorted(-ranked, -bar, side="left"))
        if kept < fewest:
            # Rows of equal confidence stand or fall together, which may leave too few above them to say anything.
            continue
        agreed = int(hits[kept - 1])
        # The chance of at least so many agreeing rows, were the agreement no better than what is wanted.
        if bdtrc(agreed - 1, kept, agreement) > 1 - level:
            break
        found = Threshold(confidence=bar, kept=kept, agreed=agreed, rows=n, agreement=agreement, level=level)
    return found
