"""What more labels would bring: the probe's main reader learned from nested parts of the labels it has."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from probekd.config import ProbeConfig
from probekd.probes.calibrate import gold_losses
from probekd.probes.crossfit import CHOOSING_TOLERANCE
from probekd.probes.families import Problem, solve, strengths_of
from probekd.probes.features import Features
from probekd.probes.fit import presence
from probekd.probes.probe import Probe
from probekd.probes.unseen import class_counts, fill, seen_temperature, unseen_shares
from probekd.states import States
from probekd.tasks.base import Example, content_hash, nested_order

FRACTIONS = (0.25, 0.5, 1.0)
# Parts that are drawn anew, since a quarter of few labels is a matter of luck.
DRAWS = 3


@dataclass(frozen=True, kw_only=True)
class Point:
    """Out-of-fold scores, on all labelled rows that a fold holds out, of a reader that learned from some of them.

    Attributes:
        labels: Labels learned from, the share that falls into a fold's training rows included.
        accuracy: Share of rows right.
        nll: Log-loss, temperature fitted.
        nll_se: Standard error of its difference from the point before; 0 for the first.
    """

    labels: int
    accuracy: float
    nll: float
    nll_se: float


@dataclass(frozen=True, kw_only=True)
class LearningCurve:
    """Points by ascending number of labels, none where there are too few, and one sentence on what they promise."""

    points: tuple[Point, ...]
    outlook: str

    def as_dict(self) -> dict[str, Any]:
        """For probe.json."""
        return asdict(self)


def learning_curve(
    probe: Probe, states: States, examples: Sequence[Example], *, config: ProbeConfig, seed: int
) -> LearningCurve:
    """Learn from a quarter, a half and all of the labels, and predict every scored row out of fold each time.

    The parts are nested and stratified by answer. The strength is the best of its part, so all points look better than
    they are by the same little.

    Args:
        probe: Its reader with the most weight, at its middle depth, is the one followed.
        states: States of the labelled rows.
        examples: The labelled rows in the probe's order.
        config: Strengths and tolerance.
        seed: Of the parts.
    """
    reader, folds, answers, scored = probe.reader, probe.folds, probe.answers, probe.scored
    n, count = len(examples), int(folds.max()) + 1
    least = round(2 * count / FRACTIONS[0])
    if scored.sum() < least:
        return LearningCurve(points=(), outlook=f"{scored.sum()} labels are too few to tell (it takes {least})")
    place = {e.id: i for i, e in enumerate(examples)}
    sizes = [max(1, round(n * fraction)) for fraction in FRACTIONS]
    # All parts are one batch of training sets: (size, draw, fold).
    parts = np.zeros((len(sizes), DRAWS, n), dtype=bool)
    for draw in range(DRAWS):
        order = [place[e.id] for e in nested_order(examples, int(content_hash(seed, "curve", draw)[:8], 16))]
        for number, size in enumerate(sizes):
            parts[number, draw, order[:size]] = True
    outside = np.stack([folds != f for f in range(count)])
    train = (parts[:, :, None, :] & outside).reshape(-1, n)
    # All labels are drawn in one way only.
    distinct, number_of = np.unique(train, axis=0, return_inverse=True)
    present = presence(examples, probe.honest.shape[1])
    strengths = strengths_of(reader.family, config.l2)
    features = Features(states.blocks(reader.layout, reader.position, reader.depth, probe.ids), present)
    fit = solve(
        reader.family,
        Problem(
            features=features,
            answers=answers,
            train=distinct,
            folds=folds,
            strengths=strengths,
            tolerance=max(config.tolerance, CHOOSING_TOLERANCE),
        ),
    )
    each = fit.logits(features.source)[:, :, : present.shape[1]].reshape(-1, len(strengths), *present.shape)
    each = np.where(present, each, -np.inf)
    counts = class_counts(answers, distinct, present.shape[1])
    # Of each row that a fold holds out, the model of that fold.
    model_of = number_of.reshape(len(sizes), DRAWS, count)[:, :, folds[scored]]  # (size, draw, m)
    rows, gold, there = np.flatnonzero(scored), answers[scored], present[scored]
    losses, hits = (np.zeros((len(sizes), len(strengths), len(rows))) for _ in range(2))  # means over the draws
    for number, draw in np.ndindex(len(sizes), DRAWS):
        models = model_of[number, draw]
        own, shares = each[models, :, rows].swapaxes(0, 1), unseen_shares(counts[models], there)
        own = fill(own / seen_temperature(own, gold, shares)[:, None, None], shares)
        losses[number] += gold_losses(own, gold) / DRAWS
        hits[number] += (own.argmax(-1) == gold) / DRAWS
    best = losses.mean(-1).argmin(-1)
    points: list[Point] = []
    for number, size in enumerate(sizes):
        own_losses = losses[number, best[number]]
        before = losses[number - 1, best[number - 1]] if number else own_losses
        points.append(
            Point(
                labels=size,
                accuracy=float(hits[number, best[number]].mean()),
                nll=float(own_losses.mean()),
                nll_se=float((own_losses - before).std() / len(rows) ** 0.5),
            )
        )
    return LearningCurve(points=tuple(points), outlook=outlook(points))


def outlook(points: Sequence[Point]) -> str:
    """What the next doubling of the labels would likely bring, from the last two."""
    earlier, last = points[-3].nll - points[-2].nll, points[-2].nll - points[-1].nll
    said = f"the last doubling of the labels ({points[-2].labels} to {points[-1].labels})"
    if last <= points[-1].nll_se:
        return f"{said} did not surely lower the probe's log-loss ({-last:+.2f}): more labels would likely bring little"
    # Errors fall as a power of the labels, so each doubling brings a fixed share of what the one before it brought.
    share = min(1.0, last / earlier) if earlier > 0 else 1.0
    return (
        f"{said} took {last:.2f} off the probe's log-loss and {100 * (points[-1].accuracy - points[-2].accuracy):+.0f} "
        f"points of accuracy; the next would likely take about {last * share:.2f}"
    )
