"""Trials: every reader cross-fitted once, with one way of dealing rows into folds."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from probekd.config import Family, Layout, Position, ProbeConfig
from probekd.errors import DataError
from probekd.probes.choose import RowLosses, join, lowest, row_losses, wins
from probekd.probes.crossfit import CrossFit, average, crossfit, untrained
from probekd.probes.families import applies, strengths_of
from probekd.probes.features import NotFiniteError
from probekd.probes.reader import Reader, neighbours
from probekd.progress import Progress
from probekd.states import States

View = tuple[Layout, Position, Family]
# A reader, or the name of an output readout: the teacher's own words may take part in a stack.
Member = Reader | str


@dataclass(frozen=True, kw_only=True)
class Plan:
    """What to try.

    Attributes:
        depths: For each view its depths, ascending.
        strengths: For each view its strengths, ascending.
        readers: All readers, in an order that every repeat shares.
        stronger: For each reader those that differ by a stronger penalty alone, weakest first.
    """

    depths: Mapping[View, tuple[int, ...]]
    strengths: Mapping[View, tuple[float, ...]]
    readers: tuple[Reader, ...]
    stronger: tuple[tuple[int, ...], ...]


def plan(states: States, config: ProbeConfig, *, classes: int) -> Plan:
    """All readers that the config admits of the states there are, but for ``answer`` states of several option orders."""
    depths: dict[View, tuple[int, ...]] = {}
    strengths: dict[View, tuple[float, ...]] = {}
    readers: list[Reader] = []
    stronger: list[tuple[int, ...]] = []
    for layout in states.layouts:
        kept = tuple(d for d in states.depths(layout) if config.depths is None or d in config.depths)
        for position in states.positions(layout):
            if not kept or (config.positions is not None and position not in config.positions):
                continue
            # One state for each of several orders has no mean that a letter's logit could be read from.
            if position == "answer" and states.permutations(layout) > 1:
                continue
            for family in dict.fromkeys(config.families):
                if not applies(family, options=position != "answer", classes=classes):
                    continue
                depths[layout, position, family] = kept
                tried = strengths[layout, position, family] = tuple(sorted(strengths_of(family, config.l2)))
                for window in windows_of(config, len(kept)):
                    for depth in kept:
                        first = len(readers)
                        kin = range(first, first + len(tried))
                        stronger += [tuple(kin[i + 1 :]) for i in range(len(tried))]
                        readers += [
                            Reader(layout=layout, position=position, depth=depth, l2=l2, family=family, window=window)
                            for l2 in tried
                        ]
    return Plan(depths=depths, strengths=strengths, readers=tuple(readers), stronger=tuple(stronger))


def windows_of(config: ProbeConfig, depths: int) -> tuple[int, ...]:
    """Each depth by itself, and the config's windows that so many depths can fill."""
    return tuple(w for w in sorted({1, *config.windows}) if w <= depths)


@dataclass(frozen=True, kw_only=True)
class Trials:
    """Cross-fitted predictions and losses of every reader of a plan.

    Attributes:
        plan: The readers.
        fits: For each view and depth the candidates of all strengths.
        losses: Of ``plan.readers``.
        words: (m, K) raw logits of each output readout.
        answers: (m,) of the rows that a fold holds out.
        folds: (m,).
    """

    plan: Plan
    fits: Mapping[View, Mapping[int, CrossFit]]
    losses: RowLosses
    words: Mapping[str, np.ndarray]
    answers: np.ndarray
    folds: np.ndarray

    @property
    def shares(self) -> np.ndarray:
        """(F, m, K) of every K-way reader, which all learn from the same rows: see ``CrossFit.unseen``."""
        each = [fit for view in self.fits.values() for fit in view.values()]
        return next((fit for fit in each if fit.unseen is not None), each[0]).shares

    def predictions(self, member: Member) -> CrossFit:
        """Predictions of one reader or output readout, C = 1."""
        if isinstance(member, str):
            return untrained(self.words[member][None], self.folds)
        return average([fit.one(which) for fit, which in self._parts(member)])

    def outer(self, member: Member) -> np.ndarray:
        """(m, K) out-of-fold logits of one reader or output readout."""
        if isinstance(member, str):
            return self.words[member]
        return np.asarray(np.mean([fit.outer[which] for fit, which in self._parts(member)], axis=0))

    def _parts(self, reader: Reader) -> list[tuple[CrossFit, int]]:
        view: View = (reader.layout, reader.position, reader.family)
        which = self.plan.strengths[view].index(reader.l2)
        return [(self.fits[view][depth], which) for depth in reader.depths(self.plan.depths[view])]

    def best(self, losses: np.ndarray, among: Sequence[int]) -> int:
        """Number of the reader that losses (C, n) choose among some.

        Depths averaged must beat the best single depth by more than a standard error: there are many more ways to
        average than there are depths, and the more are tried the better the luckiest looks.
        """
        single, several = ([i for i in among if (self.plan.readers[i].window == 1) is one] for one in (True, False))
        chosen = [self._lowest(losses, group) for group in (single, several) if group]
        return chosen[1] if len(chosen) == 2 and wins(losses[chosen[1]], losses[chosen[0]]) else chosen[0]

    def _lowest(self, losses: np.ndarray, among: Sequence[int]) -> int:
        place = {reader: i for i, reader in enumerate(among)}
        kin = [[place[s] for s in self.plan.stronger[reader] if s in place] for reader in among]
        return among[lowest(losses[np.asarray(among)], kin)]


def run_trials(
    states: States,
    ids: Sequence[str],
    answers: np.ndarray,
    present: np.ndarray,
    folds: np.ndarray,
    what: Plan,
    words: Mapping[str, np.ndarray],
    config: ProbeConfig,
    progress: Progress,
) -> Trials:
    """Cross-fit every reader on n rows, m of which a fold holds out; ``progress`` is told each depth of each view.

    Raises:
        DataError: a state holds NaN or infinity.
    """
    scored = folds >= 0
    fits: dict[View, dict[int, CrossFit]] = {}
    losses: list[RowLosses] = []
    for view, depths in what.depths.items():
        layout, position, family = view
        fits[view] = {}
        for depth in depths:
            try:
                fits[view][depth] = crossfit(
                    states.blocks(layout, position, depth, ids),
                    answers,
                    present,
                    folds,
                    what.strengths[view],
                    tolerance=config.tolerance,
                    family=family,
                )
            except NotFiniteError as error:
                raise DataError(
                    f"{layout} states at {position}, depth {depth}: that of row {ids[error.row]!r} holds NaN or infinity; read it "
                    "again in float32"
                ) from None
            progress.advance(1)
        for window in windows_of(config, len(depths)):
            for depth in depths:
                near = average([fits[view][d] for d in neighbours(depths, depth, window)])
                losses.append(row_losses(near, answers[scored], folds[scored]))
    return Trials(
        plan=what,
        fits=fits,
        losses=join(losses),
        words={name: said[scored] for name, said in words.items()},
        answers=answers[scored],
        folds=folds[scored],
    )
