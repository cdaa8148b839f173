"""Fit the probe: every layout, position, depth, family and strength cross-fitted, the best readers chosen, nested."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields

import numpy as np
import torch

from probekd.config import ProbeConfig
from probekd.errors import DataError
from probekd.metrics import expected_calibration_error
from probekd.probes.calibrate import calibrate, fit_temperature, sharpness
from probekd.probes.choose import wins
from probekd.probes.combine import pool_weights, pooled, stack_losses
from probekd.probes.crossfit import fit_folds, unseen_by
from probekd.probes.estimator import softmax_rows
from probekd.probes.families import Fit
from probekd.probes.folds import assign_folds
from probekd.probes.outputs import PRIOR, raw_logits, readout_names
from probekd.probes.probe import Probe
from probekd.probes.reader import Candidate, Reader
from probekd.probes.trials import Member, Trials, plan, run_trials
from probekd.progress import Progress, Silent, working
from probekd.states import States
from probekd.targets import SoftTargets, cross_fitted_targets
from probekd.tasks.base import Example, Task

# Standard errors by which a stack must beat its best reader, and this one an even guess among the options.
STACK_LEAD = 1.5
STACK_SIGNAL = 2.0
# A member of a stack with less weight is left out; weights are in units where a reader alone would have about one.
LEAST_WEIGHT = 1e-3


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
        trials: One for each repeat.
    """

    states: States
    task_kind: str
    ids: tuple[str, ...]
    answers: np.ndarray
    present: np.ndarray
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
        trials = []
        with working(progress, "fitting probes", sum(map(len, what.depths.values())) * config.repeats, "depths"):
            for deal in dealt:
                folds = np.array([deal[i] for i in ids])
                trials.append(run_trials(states, ids, answers, present, folds, what, words, config, progress))
        return cls(
            states=states,
            task_kind=task.kind,
            ids=tuple(ids),
            answers=answers,
            present=present,
            trials=tuple(trials),
        )

    def choose(self, config: ProbeConfig) -> Probe:
        """The probe that a config's families, windows and ``stack`` choose; each must be among those cross-fitted."""
        first = self.trials[0]
        admitted = [
            i
            for i, r in enumerate(first.plan.readers)
            if r.family in config.families and r.window in (1, *config.windows)
        ]
        outside = [_choose_nested(t, admitted, config) for t in self.trials]
        losses = np.mean([t.losses.outer for t in self.trials], axis=0)
        members = _members(first, losses, admitted, config)
        said = {m: np.mean([t.outer(m) for t in self.trials], axis=0) for m in members}
        picked = _stack_or_single(said, self.answers, first.folds)
        logits = picked.pool(said)
        return Probe(
            task_kind=self.task_kind,
            readers=picked.readers,
            weights=tuple(picked.weights[r] for r in picked.readers),
            words={m: w for m, w in picked.weights.items() if isinstance(m, str)},
            fits=tuple(self._models(reader, config) for reader in picked.readers),
            calibration=calibrate(logits, self.answers, first.folds),
            sharpness=self._sharpness(picked),
            teacher=self.states.teacher,
            ids=self.ids,
            answers=self.answers,
            folds=first.folds,
            honest=np.mean([o.honest for o in outside], axis=0),
            uncalibrated=logits,
            fold_readers=tuple(readers for o in outside for readers in o.readers),
            candidates=tuple(self._candidates(losses, admitted)),
        )

    def _sharpness(self, picked: _Picked) -> float:
        """See ``calibrate.sharpness``; the models are those that left two folds out, which rows of either never met."""
        each = []
        for t in self.trials:
            inner = {m: t.predictions(m).inner[:, 0] for m in picked.weights}
            pooled_inner = np.stack(
                [picked.pool({m: p[f] for m, p in inner.items()}) for f in range(len(t.losses.inner))]
            )
            each.append(unseen_by(pooled_inner, t.folds))
        return sharpness(np.mean(each, axis=0), self.answers)

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
                    t.folds,
                    reader.l2,
                    tolerance=config.tolerance,
                    family=reader.family,
                )
                for t in self.trials
            ]
            names = [f.name for f in fields(fits[0])]  # type: ignore[arg-type]
            found[depth] = type(fits[0])(**{n: torch.cat([getattr(fit, n) for fit in fits]) for n in names})
        return found

    def _candidates(self, losses: np.ndarray, admitted: Sequence[int]) -> list[Candidate]:
        """Scores of every reader, the mean over the repeats."""
        result = []
        for number in admitted:
            reader = self.trials[0].plan.readers[number]
            accuracies, eces = [], []
            for t in self.trials:
                probs = softmax_rows(t.outer(reader) / t.losses.temperatures[number])
                hits = probs.argmax(1) == self.answers
                accuracies.append(hits.mean())
                eces.append(expected_calibration_error(probs.max(1), hits))
            nll = float(losses[number].mean())
            result.append(
                Candidate(reader=reader, accuracy=float(np.mean(accuracies)), nll=nll, ece=float(np.mean(eces)))
            )
        return result


@dataclass(frozen=True, kw_only=True)
class _Picked:
    """What was chosen: one reader of weight 1, or several members of a stack."""

    weights: Mapping[Member, float]

    @property
    def readers(self) -> tuple[Reader, ...]:
        return tuple(m for m in self.weights if isinstance(m, Reader))

    def pool(self, said: Mapping[Member, np.ndarray]) -> np.ndarray:
        """(n, K) logits of the whole from (n, K) logits of each member."""
        each = np.stack([said[m] for m in self.weights]).astype(np.float64)
        return pooled(np.array(list(self.weights.values())), each)


@dataclass(frozen=True, kw_only=True)
class _Outside:
    """What one repeat's nested choice gave: (n, K) calibrated logits, and the readers of each fold."""

    honest: np.ndarray
    readers: tuple[tuple[Reader, ...], ...]


def _choose_nested(trials: Trials, admitted: Sequence[int], config: ProbeConfig) -> _Outside:
    """Choose for each fold by the others alone, and predict it."""
    answers, folds = trials.answers, trials.folds
    honest = np.empty(trials.outer(trials.plan.readers[0]).shape)
    readers = []
    for f in range(int(folds.max()) + 1):
        seen, held = folds != f, folds == f
        members = {
            m: trials.predictions(m) for m in _members(trials, trials.losses.inner[f][:, seen], admitted, config)
        }
        inside = {m: p.inner[f, 0][seen] for m, p in members.items()}
        picked = _stack_or_single(inside, answers[seen], folds[seen])
        fitted = calibrate(picked.pool(inside), answers[seen], folds[seen])
        honest[held] = fitted.apply(picked.pool({m: p.outer[0][held] for m, p in members.items()}))
        readers.append(picked.readers)
    return _Outside(honest=honest, readers=tuple(readers))


def _members(trials: Trials, losses: np.ndarray, admitted: Sequence[int], config: ProbeConfig) -> tuple[Member, ...]:
    """The best reader, and what it may be stacked with: the best of each layout and position, and the teacher's words."""
    readers = trials.plan.readers
    best = readers[trials.best(losses, admitted)]
    if not config.stack:
        return (best,)
    groups: dict[tuple[str, str], list[int]] = {}
    for number in admitted:
        groups.setdefault((readers[number].layout, readers[number].position), []).append(number)
    rest = (readers[trials.best(losses, group)] for group in groups.values())
    return tuple(dict.fromkeys((best, *rest, *trials.words)))


def _stack_or_single(said: Mapping[Member, np.ndarray], answers: np.ndarray, folds: np.ndarray) -> _Picked:
    """The first member, or the stack of all when its cross-validated log-loss is clearly lower.

    Where the best reader knows hardly more than nothing there is nothing to add up, and weights are noise.

    Args:
        said: (n, K) out-of-fold logits of the best reader, then of what it may be stacked with.
        answers: (n,).
        folds: (n,).
    """
    members = tuple(said)
    best = members[0]
    single = _Picked(weights={best: 1.0})
    if len(members) == 1:
        return single
    scale = {m: 1 / float(fit_temperature(said[m], answers)) for m in members}
    each = np.stack([said[m] * scale[m] for m in members]).astype(np.float64)
    alone = stack_losses(each[:1], answers, folds)
    knowing_nothing = np.log(np.isfinite(each[0]).sum(1))
    if not wins(alone, knowing_nothing, errors=STACK_SIGNAL):
        return single
    if not wins(stack_losses(each, answers, folds), alone, errors=STACK_LEAD):
        return single
    weights = dict(zip(members, pool_weights(each, answers), strict=True))
    return _Picked(weights={m: float(w * scale[m]) for m, w in weights.items() if w > LEAST_WEIGHT or m == best})


def soft_labels(probe: Probe, states: States) -> SoftTargets:
    """Targets of the labelled rows (out-of-fold) and of every unlabelled row there are states for (mean of the folds).

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
    honest = [row[np.isfinite(row)] for row in (probe.honest[place[row_id]] for row_id in labelled)]
    pooled_logits = probe.logits(states, pool) if pool else []
    return cross_fitted_targets(labelled, honest, [int(probe.folds[place[i]]) for i in labelled], pool, pooled_logits)
