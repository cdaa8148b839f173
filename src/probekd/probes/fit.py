"""Fit the probe: every layout, position, depth, family and strength cross-fitted, the best readers chosen, nested."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields

import numpy as np
import torch

from probekd.config import ProbeConfig
from probekd.errors import DataError
from probekd.metrics import expected_calibration_error
from probekd.probes.calibrate import gold_losses, one_temperature, sharpness
from probekd.probes.choose import flattery, wins
from probekd.probes.crossfit import fit_folds, unseen_by
from probekd.probes.estimator import softmax_rows
from probekd.probes.families import Fit
from probekd.probes.folds import assign_folds
from probekd.probes.outputs import PRIOR, raw_logits, readout_names
from probekd.probes.pick import SIGNAL, Picked, Picker, inside, whole
from probekd.probes.probe import Probe
from probekd.probes.reader import Candidate, Reader
from probekd.probes.trials import Trials, plan, run_trials
from probekd.probes.unseen import fill, mean_of_models
from probekd.progress import Progress, Silent, working
from probekd.states import States
from probekd.targets import SoftTargets, cross_fitted_targets, labelled_logits
from probekd.tasks.base import Example, Task


def presence(examples: Sequence[Example], width: int) -> np.ndarray:
    """(n, width) bool: which options each row has."""
    return np.arange(width) < np.array([len(e.options) for e in examples])[:, None]


def fit_probes(
    states: States, task: Task, *, config: ProbeConfig | None = None, seed: int = 0, progress: Progress | None = None
) -> Probe:
    """Train probes on every layout, position and depth, and choose by out-of-fold log-loss what reads best.

    Only labelled ``train`` rows are used. Option positions are read by one scorer shared by all options, the ``answer``
    position by a K-way probe.

    Args:
        states: States of the labelled rows.
        task: The rows.
        config: Folds, families, strengths and what to try.
        seed: Decides the folds.
        progress: Told each depth as it is done.

    Raises:
        DataError: too few labels for the folds, or no states that the config admits.
    """
    config = config or ProbeConfig()
    return CrossFitted.run(states, task, config=config, seed=seed, progress=progress or Silent()).choose(config)


@dataclass(frozen=True, kw_only=True)
class CrossFitted:
    """Every reader cross-fitted on a task's labelled rows, before anything is chosen.

    Attributes:
        states: The states.
        task_kind: Kind of the task.
        ids: Labelled rows, in the order of all that follows.
        answers: (n,).
        present: (n, K).
        deals: (n,) folds of each repeat; -1 for rows that none holds out.
        trials: One for each repeat.
    """

    states: States
    task_kind: str
    ids: tuple[str, ...]
    answers: np.ndarray
    present: np.ndarray
    deals: tuple[np.ndarray, ...]
    trials: tuple[Trials, ...]

    @classmethod
    def run(cls, states: States, task: Task, *, config: ProbeConfig, seed: int, progress: Progress) -> CrossFitted:
        """Cross-fit; arguments and errors as ``fit_probes``."""
        labelled = {e.id: e for e in task.rows("train") if e.answer is not None}
        rows = list(labelled.values())
        dealt = [
            dict(zip(labelled, assign_folds(rows, task.kind, folds=config.folds, seed=seed, repeat=r), strict=True))
            for r in range(config.repeats)
        ]
        # Rows in the stores' order: the solver's rounding does not depend on the file's, and shards are read end to end.
        ids = states.in_stored_order(states.layouts[0], list(labelled))
        examples = [labelled[i] for i in ids]
        answers = np.array([e.answer for e in examples])
        width = max(len(e.options) for e in examples)
        present = presence(examples, width)
        what = plan(states, config, classes=width)
        if not what.readers:
            raise DataError(
                "the probe config admits none of the states' positions and depths; widen probe.positions, probe.depths "
                "or probe.families (with prompt.permutations, the answer position is not read)"
            )
        counts = [len(e.options) for e in examples]
        names = [name for name in readout_names(states) if name != PRIOR]
        words = {name: raw_logits(states, name, ids, counts, width) for name in names}
        deals = tuple(np.array([deal[i] for i in ids]) for deal in dealt)
        with working(progress, "fitting probes", sum(map(len, what.depths.values())) * config.repeats, "depths"):
            trials = tuple(
                run_trials(states, ids, answers, present, folds, what, words, config, progress) for folds in deals
            )
        return cls(
            states=states,
            task_kind=task.kind,
            ids=tuple(ids),
            answers=answers,
            present=present,
            deals=deals,
            trials=trials,
        )

    def choose(self, config: ProbeConfig) -> Probe:
        """The probe that a config's families, windows and ``stack`` choose; each must be among those cross-fitted."""
        admitted = [
            i
            for i, r in enumerate(self.trials[0].plan.readers)
            if r.family in config.families and r.window in (1, *config.windows)
        ]
        vector = self.task_kind == "classification"
        pickers = [Picker(trials=t, admitted=admitted, config=config, vector=vector) for t in self.trials]
        outside = [_choose_nested(picker, picker.trials) for picker in pickers]
        level = whole(self.trials)
        picked, calibration = pickers[0].fit(level)
        logits = level.pooled(picked)
        return Probe(
            task_kind=self.task_kind,
            readers=picked.readers,
            weights=tuple(picked.weights[r] for r in picked.readers),
            temperatures=tuple(picked.temperatures[r] for r in picked.readers),
            words={m: w for m, w in picked.weights.items() if isinstance(m, str)},
            fits=tuple(self._models(reader, config) for reader in picked.readers),
            calibration=calibration,
            sharpness=self._sharpness(picked),
            flattery=float(np.mean([o.flattery for o in outside])),
            teacher=self.states.teacher,
            ids=self.ids,
            answers=self.answers,
            folds=self.deals[0],
            honest=np.mean([o.honest for o in outside], axis=0),
            uncalibrated=fill(logits, level.shares, calibration.temperature),
            fold_readers=tuple(readers for o in outside for readers in o.readers),
            candidates=tuple(self._candidates(level.losses, admitted)),
        )

    def _sharpness(self, picked: Picked) -> float:
        """See ``calibrate.sharpness``; the models are those that left two folds out, which rows of either never met.

        1 where their mean knows hardly more than nothing: near chance a ratio of temperatures is noise, and being surer
        of noise cost up to 0.06 nats on held-out rows.
        """
        each = []
        for t in self.trials:
            inner = {m: t.predictions(m).inner[:, 0] for m in picked.weights}
            pooled_inner = [picked.pool({m: p[f] for m, p in inner.items()}, own) for f, own in enumerate(t.shares)]
            each.append(unseen_by(np.stack(pooled_inner), t.folds))
        models, answers = mean_of_models(np.stack(each)), self.trials[0].answers
        together = mean_of_models(models)
        rows = np.isfinite(together[np.arange(len(answers)), answers])
        if not rows.any():
            return 1.0
        own = one_temperature(together[rows], answers[rows]).apply(together[rows])
        knowing_nothing = np.log(np.isfinite(together[rows]).sum(1))
        if not wins(gold_losses(own, answers[rows]), knowing_nothing, errors=SIGNAL):
            return 1.0
        return sharpness(models, together, answers)

    def _models(self, reader: Reader, config: ProbeConfig) -> dict[int, Fit]:
        """The models of every fold and repeat at each depth of a reader."""
        held = self.trials[0].plan.depths[reader.layout, reader.position, reader.family]
        found = {}
        for depth in reader.depths(held):
            blocks = self.states.blocks(reader.layout, reader.position, depth, self.ids)
            fits = [
                fit_folds(
                    blocks,
                    self.answers,
                    self.present,
                    folds,
                    reader.l2,
                    tolerance=config.tolerance,
                    family=reader.family,
                )
                for folds in self.deals
            ]
            names = [f.name for f in fields(fits[0])]  # type: ignore[arg-type]
            found[depth] = type(fits[0])(**{n: torch.cat([getattr(fit, n) for fit in fits]) for n in names})
        return found

    def _candidates(self, losses: np.ndarray, admitted: Sequence[int]) -> list[Candidate]:
        """Scores of every reader, the mean over the repeats."""
        result = []
        shares = [t.shares[t.folds, np.arange(len(t.folds))] for t in self.trials]
        for number in admitted:
            reader = self.trials[0].plan.readers[number]
            accuracies, eces = [], []
            for t, own in zip(self.trials, shares, strict=True):
                probs = softmax_rows(fill(t.outer(reader) / t.losses.temperatures[number], own))
                hits = probs.argmax(1) == t.answers
                accuracies.append(hits.mean())
                eces.append(expected_calibration_error(probs.max(1), hits))
            nll = float(losses[number].mean())
            result.append(
                Candidate(reader=reader, accuracy=float(np.mean(accuracies)), nll=nll, ece=float(np.mean(eces)))
            )
        return result


@dataclass(frozen=True, kw_only=True)
class _Outside:
    """What one repeat's nested choice gave: (m, K) calibrated logits, the readers of each fold, and their ``flattery``."""

    honest: np.ndarray
    readers: tuple[tuple[Reader, ...], ...]
    flattery: float


def _choose_nested(picker: Picker, trials: Trials) -> _Outside:
    """Choose for each fold by the others alone, and predict it."""
    folds, own = trials.folds, trials.shares[trials.folds, np.arange(len(trials.folds))]
    tempered, honest = np.empty(own.shape), np.empty(own.shape)
    readers = []
    for f in range(int(folds.max()) + 1):
        held, level = folds == f, inside(trials, f)
        picked, calibration = picker.fit(level)
        outside = picked.pool({m: trials.outer(m)[held] for m in picked.weights}, own[held])
        tempered[held] = outside / level.temperature(picked)
        honest[held] = fill(calibration.softened(picker.flattery_inside(level)).apply(outside), own[held])
        readers.append(picked.readers)
    flattered = flattery(tempered, trials.answers, own)
    return _Outside(honest=honest, readers=tuple(readers), flattery=flattered)


def soft_labels(probe: Probe, states: States) -> SoftTargets:
    """Targets of the labelled rows and of every unlabelled row there are states for (mean of the folds).

    A labelled row's target is out of fold, or its gold label where no fold holds it out.

    Raises:
        DataError: train rows that the probe was not fitted with: they would get targets of a kind that is not theirs.
    """
    place = {row_id: i for i, row_id in enumerate(probe.ids)}
    layout = probe.reader.layout
    labelled, pool = states.ids(layout, "train"), states.ids(layout, "unlabelled")
    strange = [row_id for row_id in labelled if row_id not in place]
    if strange:
        raise DataError(
            f"{len(strange)} train rows, such as {strange[0]!r}, were not among the probe's labelled rows; fit the probe on this task"
        )
    said = labelled_logits(probe.honest, probe.answers, probe.folds)
    rows = [place[row_id] for row_id in labelled]
    return cross_fitted_targets(
        labelled,
        [said[i] for i in rows],
        [int(probe.folds[i]) for i in rows],
        pool,
        probe.logits(states, pool) if pool else [],
    )
