"""Fit the probe: every layout, position, depth, family and strength cross-fitted, the best readers chosen, nested."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from probekd.config import ProbeConfig
from probekd.errors import DataError
from probekd.metrics import expected_calibration_error
from probekd.probes.calibrate import calibrate, fit_temperature
from probekd.probes.combine import pool_weights, pooled, stack_losses, wins
from probekd.probes.crossfit import fit_folds
from probekd.probes.estimator import softmax_rows
from probekd.probes.families import Fit
from probekd.probes.folds import assign_folds
from probekd.probes.probe import Probe
from probekd.probes.reader import Candidate, Reader
from probekd.probes.trials import Trials, plan, run_trials
from probekd.progress import Progress, Silent, working
from probekd.states import States
from probekd.targets import SoftTargets, cross_fitted_targets
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
    progress = progress or Silent()
    labelled = {e.id: e for e in task.rows("train") if e.answer is not None}
    examples = list(labelled.values())
    dealt = [
        dict(zip(labelled, assign_folds(examples, task.kind, folds=config.folds, seed=seed, repeat=r), strict=True))
        for r in range(config.repeats)
    ]
    # Rows in the stores' order: the solver's rounding does not depend on the file's, and shards are read end to end.
    ids = states.in_stored_order(states.layouts[0], list(labelled))
    examples = [labelled[i] for i in ids]
    folds = [np.array([deal[i] for i in ids]) for deal in dealt]
    answers = np.array([e.answer for e in examples])
    width = max(len(e.options) for e in examples)
    present = presence(examples, width)
    what = plan(states, config, classes=width)
    if not what.readers:
        raise DataError(
            "the probe config admits none of the states' positions and depths; widen probe.positions, probe.depths or probe.families"
        )
    depths = sum(len(d) for d in what.depths.values()) * config.repeats
    with working(progress, "fitting probes", depths, "depths"):
        trials = [run_trials(states, ids, answers, present, f, what, config, progress) for f in folds]
    outside = [_choose_nested(t, config) for t in trials]
    losses = np.mean([t.losses.outer for t in trials], axis=0)
    picked = _pick(trials, losses, config)
    logits = picked.pool(trials)
    return Probe(
        task_kind=task.kind,
        readers=picked.readers,
        weights=picked.weights,
        fits=tuple(
            {
                depth: _all_fold_models(states, ids, answers, present, folds, reader, depth, config)
                for depth in reader.depths(what.depths[reader.layout, reader.position, reader.family])
            }
            for reader in picked.readers
        ),
        calibration=calibrate(logits, answers, folds[0]),
        teacher=states.teacher,
        ids=tuple(ids),
        answers=answers,
        folds=folds[0],
        honest=np.mean([o.honest for o in outside], axis=0),
        uncalibrated=logits,
        fold_readers=tuple(readers for o in outside for readers in o.readers),
        candidates=tuple(_scored(trials, losses)),
    )


@dataclass(frozen=True, kw_only=True)
class _Picked:
    """One reader, or several with weights."""

    readers: tuple[Reader, ...]
    weights: tuple[float, ...]

    def pool(self, trials: Sequence[Trials]) -> np.ndarray:
        """(n, K) out-of-fold logits, the mean over the repeats."""
        each = np.stack([np.mean([t.outer(r) for t in trials], axis=0) for r in self.readers])
        return pooled(np.array(self.weights), each.astype(np.float64))


@dataclass(frozen=True, kw_only=True)
class _Outside:
    """What one repeat's nested choice gave: (n, K) calibrated logits, and the readers of each fold."""

    honest: np.ndarray
    readers: tuple[tuple[Reader, ...], ...]


def _choose_nested(trials: Trials, config: ProbeConfig) -> _Outside:
    answers, folds = trials.answers, trials.folds
    honest: np.ndarray | None = None
    readers = []
    for f in range(int(folds.max()) + 1):
        seen, held = folds != f, folds == f
        inside = {
            reader: trials.predictions(reader) for reader in _members(trials, trials.losses.inner[f][:, seen], config)
        }
        best = trials.plan.readers[trials.best(trials.losses.inner[f][:, seen])]
        inside.setdefault(best, trials.predictions(best))
        picked = _stack_or_single(
            best, {r: p.inner[f, 0][seen] for r, p in inside.items()}, answers[seen], folds[seen], config
        )
        used = np.stack([inside[r].inner[f, 0][seen] for r in picked.readers]).astype(np.float64)
        fitted = calibrate(pooled(np.array(picked.weights), used), answers[seen], folds[seen])
        out = np.stack([inside[r].outer[0][held] for r in picked.readers]).astype(np.float64)
        said = fitted.apply(pooled(np.array(picked.weights), out))
        honest = np.empty((len(answers), said.shape[1])) if honest is None else honest
        honest[held] = said
        readers.append(picked.readers)
    assert honest is not None
    return _Outside(honest=honest, readers=tuple(readers))


def _pick(trials: Sequence[Trials], losses: np.ndarray, config: ProbeConfig) -> _Picked:
    """The choice over all labelled rows; predictions and losses are the means over the repeats."""
    first = trials[0]
    best = first.plan.readers[first.best(losses)]
    readers = dict.fromkeys((*_members(first, losses, config), best))
    said = {r: np.mean([t.outer(r) for t in trials], axis=0) for r in readers}
    return _stack_or_single(best, said, first.answers, first.folds, config)


def _members(trials: Trials, losses: np.ndarray, config: ProbeConfig) -> tuple[Reader, ...]:
    """What a stack is made of: the best reader of each layout and position."""
    if not config.stack:
        return ()
    readers = trials.plan.readers
    groups: dict[tuple[str, str], list[int]] = {}
    for number, reader in enumerate(readers):
        groups.setdefault((reader.layout, reader.position), []).append(number)
    return tuple(readers[trials.best(losses, among)] for among in groups.values())


def _stack_or_single(
    best: Reader, said: Mapping[Reader, np.ndarray], answers: np.ndarray, folds: np.ndarray, config: ProbeConfig
) -> _Picked:
    """The best reader, or the stack when its cross-validated log-loss is lower by more than a standard error.

    Args:
        best: The best single reader.
        said: (n, K) out-of-fold logits of it and of the stack's members.
        answers: (n,).
        folds: (n,).
        config: ``stack`` says whether to try.
    """
    single = _Picked(readers=(best,), weights=(1.0,))
    members = tuple(said)
    if not config.stack or len(members) < 2:
        return single
    scale = {r: 1 / float(fit_temperature(said[r], answers)) for r in members}
    each = np.stack([said[r] * scale[r] for r in members]).astype(np.float64)
    alone = stack_losses(each[[members.index(best)]], answers, folds)
    if not wins(stack_losses(each, answers, folds), alone):
        return single
    weights = pool_weights(each, answers)
    kept = [(r, float(w * scale[r])) for r, w in zip(members, weights, strict=True) if w > 1e-6]
    return _Picked(readers=tuple(r for r, _ in kept), weights=tuple(w for _, w in kept))


def _all_fold_models(
    states: States,
    ids: Sequence[str],
    answers: np.ndarray,
    present: np.ndarray,
    folds: Sequence[np.ndarray],
    reader: Reader,
    depth: int,
    config: ProbeConfig,
) -> Fit:
    """The models of every fold and repeat at one depth of a reader."""
    from dataclasses import fields

    import torch

    blocks = states.blocks(reader.layout, reader.position, depth, ids)
    fits = [
        fit_folds(blocks, answers, present, f, reader.l2, tolerance=config.tolerance, family=reader.family)
        for f in folds
    ]
    joined = {f.name: torch.cat([getattr(fit, f.name) for fit in fits]) for f in fields(fits[0])}  # type: ignore[arg-type]
    return type(fits[0])(**joined)


def _scored(trials: Sequence[Trials], losses: np.ndarray) -> list[Candidate]:
    """Scores of every reader, the mean over the repeats."""
    answers = trials[0].answers
    result = []
    for number, reader in enumerate(trials[0].plan.readers):
        accuracies, eces = [], []
        for t in trials:
            probs = softmax_rows(t.outer(reader) / t.losses.temperatures[number])
            hits = probs.argmax(1) == answers
            accuracies.append(hits.mean())
            eces.append(expected_calibration_error(probs.max(1), hits))
        nll = float(losses[number].mean())
        result.append(Candidate(reader=reader, accuracy=float(np.mean(accuracies)), nll=nll, ece=float(np.mean(eces))))
    return result


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
