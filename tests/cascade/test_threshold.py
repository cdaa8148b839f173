from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
from scipy.stats import beta

from probekd.cascade.threshold import Threshold, choose_threshold, fewest_rows

Curve = Callable[[np.ndarray], np.ndarray]
TRIALS = 2000
AGREEMENT = LEVEL = 0.9


def rounded(values: np.ndarray) -> np.ndarray:
    return np.round(values, 1)


# Chance of agreement at a confidence, and how confidences are rounded: just too low everywhere, rising through the
# target, jumping over it between confidences that many rows share, and falling where the student is most sure.
WORLDS: dict[str, tuple[Curve, Callable[[np.ndarray], np.ndarray]]] = {
    "flat": (lambda c: np.full_like(c, 0.895), np.asarray),
    "rising": (lambda c: 0.6 + 0.4 * c, np.asarray),
    "steep": (lambda c: np.where(c > 0.5, 1.0, 0.7), np.asarray),
    "tied": (lambda c: 0.6 + 0.4 * c, rounded),
    "tied jump": (lambda c: np.where(c > 0.45, 0.97, 0.75), rounded),
    "falling": (lambda c: 0.99 - 0.15 * (c - 0.3) ** 2 - 0.05 * c, np.asarray),
}


def true_agreement(curve: Curve, rounding: Callable[[np.ndarray], np.ndarray], bar: float) -> float:
    grid = rounding(np.linspace(0, 1, 20001)[1:])
    return float(curve(grid[grid > bar]).mean())


@pytest.mark.parametrize("n", [60, 300])
@pytest.mark.parametrize("world", WORLDS)
def test_the_bound_holds_at_its_level(world: str, n: int) -> None:
    curve, rounding = WORLDS[world]
    draw = np.random.default_rng(0)
    broken = 0
    for _ in range(TRIALS):
        confidence = rounding(draw.random(n))
        found = choose_threshold(confidence, draw.random(n) < curve(confidence), agreement=AGREEMENT, level=LEVEL)
        broken += found is not None and true_agreement(curve, rounding, found.confidence) < AGREEMENT
    # Three standard errors of a share of 0.1.
    assert broken / TRIALS < 1 - LEVEL + 3 * (0.1 * 0.9 / TRIALS) ** 0.5


def test_where_agreement_rises_most_rows_that_may_be_kept_are() -> None:
    curve, _ = WORLDS["rising"]
    draw = np.random.default_rng(1)
    kept = []
    for _ in range(50):
        confidence = draw.random(2000)
        found = choose_threshold(confidence, draw.random(2000) < curve(confidence), agreement=AGREEMENT, level=LEVEL)
        assert found is not None
        kept.append((confidence > found.confidence).mean())
    # Above 0.5 the curve's mean is 0.9: half of the rows could be kept at most.
    assert 0.35 < np.mean(kept) < 0.5


def test_what_passes_has_its_clopper_pearson_bound_at_the_target() -> None:
    draw = np.random.default_rng(2)
    confidence = draw.random(400)
    agrees = draw.random(400) < 0.5 + 0.5 * confidence**0.2
    found = choose_threshold(confidence, agrees, agreement=0.85, level=0.95)
    assert found is not None
    above = confidence > found.confidence
    assert (found.kept, found.agreed, found.rows) == (above.sum(), agrees[above].sum(), 400)
    assert beta.ppf(0.05, found.agreed, found.kept - found.agreed + 1) >= 0.85


def test_full_agreement_keeps_every_row_and_none_keeps_none() -> None:
    confidence = np.linspace(0.3, 0.9, 100)
    all_kept = choose_threshold(confidence, np.ones(100, dtype=bool))
    assert all_kept == Threshold(confidence=0.0, kept=100, agreed=100, rows=100, agreement=0.95, level=0.95)
    assert choose_threshold(confidence, np.zeros(100, dtype=bool)) is None


@pytest.mark.parametrize(("agreement", "level", "rows"), [(0.95, 0.95, 59), (0.9, 0.95, 29), (0.99, 0.9, 230)])
def test_fewer_rows_than_could_ever_pass(agreement: float, level: float, rows: int) -> None:
    assert fewest_rows(agreement, level) == rows
    some = np.linspace(0.5, 1, rows)
    settings = {"agreement": agreement, "level": level}
    assert choose_threshold(some, np.ones(rows, dtype=bool), **settings) is not None
    assert choose_threshold(some[1:], np.ones(rows - 1, dtype=bool), **settings) is None
    assert choose_threshold(np.array([]), np.array([], dtype=bool), **settings) is None


def test_rows_of_one_confidence_are_kept_or_handed_on_together() -> None:
    confidence = np.repeat([0.9, 0.6], 100)
    agrees = np.arange(200) < 130
    found = choose_threshold(confidence, agrees)
    assert found is not None
    assert (found.confidence, found.kept, found.agreed) == (0.6, 100, 100)
    assert choose_threshold(np.full(200, 0.7), agrees) is None
