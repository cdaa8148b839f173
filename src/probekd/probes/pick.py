"""Pick what to read with, by some rows: one reader, or a stack of several members."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache

import numpy as np

from probekd.config import ProbeConfig
from probekd.probes.calibrate import Calibration, calibrate
from probekd.probes.choose import flattery_inside, wins
from probekd.probes.combine import pool_weights, pooled, stack_losses
from probekd.probes.reader import Reader
from probekd.probes.trials import Member, Trials
from probekd.probes.unseen import fill, mean_of_models, seen_temperature

# Standard errors by which a stack must beat its best reader.
STACK_LEAD = 1.5
# ... and by which a reader must beat an even guess among the options, or it is neither stacked nor sharpened.
SIGNAL = 2.0
# A member of a stack with less weight is left out; weights are in units where a reader alone would have about one.
LEAST_WEIGHT = 1e-3


@dataclass(frozen=True, kw_only=True)
class Picked:
    """What was picked: one reader of weight 1, or several members of a stack, and their own temperatures."""

    weights: Mapping[Member, float]
    temperatures: Mapping[Member, float]

    @property
    def readers(self) -> tuple[Reader, ...]:
        """The members that are no output readouts."""
        return tuple(m for m in self.weights if isinstance(m, Reader))

    def pool(self, said: Mapping[Member, np.ndarray], shares: np.ndarray) -> np.ndarray:
        """(n, K) logits of the whole from (n, K) logits of each member; -inf for a class that no reader saw.

        Of a class that some readers saw, a letter that is rare among options, the others say what ``shares`` gives.
        """
        each = [fill(said[m], shares, self.temperatures[m]) for m in self.weights]
        total = pooled(np.array(list(self.weights.values())), np.stack(each).astype(np.float64))
        return np.where(_seen({r: said[r] for r in self.readers}), total, -np.inf)


@dataclass(frozen=True, kw_only=True)
class Level:
    """Rows that choose, and what every member says of them out of fold: of all scored rows, or of those beside one fold.

    Attributes:
        losses: (C, n) of a plan's readers.
        said: Gives the (n, K) logits of a member, -inf for classes that its models never saw.
        answers: (n,).
        folds: (n,).
        shares: (n, K) probabilities of classes that the rows' models never saw.
    """

    losses: np.ndarray
    said: Callable[[Member], np.ndarray]
    answers: np.ndarray
    folds: np.ndarray
    shares: np.ndarray

    def pooled(self, picked: Picked) -> np.ndarray:
        """(n, K) logits of what was picked; -inf for classes that no reader saw."""
        return picked.pool({m: self.said(m) for m in picked.weights}, self.shares)

    def temperature(self, picked: Picked) -> float:
        """That the rows fit to what was picked."""
        return float(seen_temperature(self.pooled(picked)[None], self.answers, self.shares)[0])

    def at(self, rows: np.ndarray) -> Level:
        """The level of the rows marked in (n,) bool."""
        return Level(
            losses=self.losses[:, rows],
            said=lambda member: self.said(member)[rows],
            answers=self.answers[rows],
            folds=self.folds[rows],
            shares=self.shares[rows],
        )


def inside(trials: Trials, fold: int) -> Level:
    """What is known without a fold: its rows have no say, and no model that is asked met them."""
    seen = trials.folds != fold
    return Level(
        losses=trials.losses.inner[fold][:, seen],
        said=cache(lambda member: trials.predictions(member).inner[fold, 0][seen]),
        answers=trials.answers[seen],
        folds=trials.folds[seen],
        shares=trials.shares[fold, seen],
    )


def whole(trials: Sequence[Trials]) -> Level:
    """All scored rows, and the mean of the repeats' predictions; the folds are the first one's."""
    first = trials[0]
    return Level(
        losses=np.mean([t.losses.outer for t in trials], axis=0),
        said=cache(lambda member: mean_of_models(np.stack([t.outer(member) for t in trials]))),
        answers=first.answers,
        folds=first.folds,
        shares=first.shares[first.folds, np.arange(len(first.folds))],
    )


@dataclass(frozen=True, kw_only=True)
class Picker:
    """Picks among a plan's readers.

    Attributes:
        trials: Says the plan and the output readouts.
        admitted: Numbers of the readers that may be picked.
        config: Whether to stack.
        vector: Whether vector scaling may be: see ``calibrate``.
    """

    trials: Trials
    admitted: Sequence[int]
    config: ProbeConfig
    vector: bool

    def pick(self, level: Level) -> Picked:
        """The best reader, or a stack, by the rows of a level."""
        said = {m: level.said(m) for m in self._members(level.losses)}
        return stack_or_single(said, level.answers, level.folds, level.shares)

    def fit(self, level: Level) -> tuple[Picked, Calibration]:
        """What the rows of a level pick, and its calibration by them."""
        picked = self.pick(level)
        return picked, calibrate(level.pooled(picked), level.answers, level.folds, vector=self.vector)

    def flattery_inside(self, level: Level) -> float:
        """See ``choose.flattery_inside``."""

        def say(rows: np.ndarray) -> np.ndarray:
            rest = level.at(rows)
            picked = self.pick(rest)
            return level.pooled(picked) / rest.temperature(picked)

        return flattery_inside(say, level.answers, level.folds, level.shares)

    def _members(self, losses: np.ndarray) -> tuple[Member, ...]:
        """The best reader, and what it may be stacked with: the best of each layout and position, and the teacher's words."""
        trials, readers = self.trials, self.trials.plan.readers
        best = readers[trials.best(losses, self.admitted)]
        if not self.config.stack:
            return (best,)
        groups: dict[tuple[str, str], list[int]] = {}
        for number in self.admitted:
            groups.setdefault((readers[number].layout, readers[number].position), []).append(number)
        rest = (readers[trials.best(losses, group)] for group in groups.values())
        return tuple(dict.fromkeys((best, *rest, *trials.words)))


def _seen(said: Mapping[Member, np.ndarray]) -> np.ndarray:
    """(n, K) bool: options that some reader saw; the teacher's words have seen nothing, and rank them all."""
    return np.asarray(np.any([np.isfinite(z) for m, z in said.items() if isinstance(m, Reader)], axis=0))


def stack_or_single(
    said: Mapping[Member, np.ndarray], answers: np.ndarray, folds: np.ndarray, shares: np.ndarray
) -> Picked:
    """The first member, or the stack of all when its cross-validated log-loss is clearly lower.

    Where the best reader knows hardly more than nothing there is nothing to add up, and weights are noise.

    Args:
        said: (n, K) out-of-fold logits of the best reader, then of what it may be stacked with.
        answers: (n,).
        folds: (n,).
        shares: (n, K) probabilities of classes that the rows' models never saw.
    """
    members = tuple(said)
    best = members[0]
    temperatures = {m: float(seen_temperature(said[m][None], answers, shares)[0]) for m in members}
    single = Picked(weights={best: 1.0}, temperatures=temperatures)
    seen = _seen(said)
    # Who saw nothing of a row's class has no say in whether others did better.
    rows = seen[np.arange(len(answers)), answers]
    if len(members) == 1 or not rows.any():
        return single
    each = np.stack([np.where(seen, fill(said[m] / temperatures[m], shares), -np.inf) for m in members])
    each, answers, folds = each[:, rows].astype(np.float64), answers[rows], folds[rows]
    alone = stack_losses(each[:1], answers, folds)
    knowing_nothing = np.log(np.isfinite(each[0]).sum(1))
    if not wins(alone, knowing_nothing, errors=SIGNAL):
        return single
    if not wins(stack_losses(each, answers, folds), alone, errors=STACK_LEAD):
        return single
    weights = dict(zip(members, pool_weights(each, answers), strict=True))
    kept = {m: float(w / temperatures[m]) for m, w in weights.items() if w > LEAST_WEIGHT or m == best}
    return Picked(weights=kept, temperatures=temperatures)
