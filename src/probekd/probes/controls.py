"""Controls: what a reader gets from less than the states of the teacher."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from probekd.config import ProbeConfig
from probekd.metrics import Scores, calibration_bins, correct, score
from probekd.probes.choose import by_strength, choose
from probekd.probes.crossfit import crossfit
from probekd.probes.families import strengths_of
from probekd.probes.fit import presence
from probekd.probes.outputs import prior_logits
from probekd.probes.probe import Probe
from probekd.states import States
from probekd.targets import softmax
from probekd.tasks.base import Example


def label_prior(answers: np.ndarray, examples: Sequence[Example], folds: np.ndarray) -> Scores:
    """Scores of the answers' shares among the rows of the other folds, one of each added."""
    counts = [len(e.options) for e in examples]
    scored = folds >= 0
    logits = prior_logits(counts, answers, folds, max(counts))[scored]
    return score([softmax(row[np.isfinite(row)]) for row in logits], answers[scored].tolist())


def depth_zero(probe: Probe) -> dict[str, Any] | None:
    """Scores of the best reader of the embeddings, which saw no context; None where depth 0 was not tried."""
    shallow = [c for c in probe.candidates if c.reader.depth == 0 and c.reader.window == 1]
    if not shallow:
        return None
    best = min(shallow, key=lambda c: c.nll)
    return {"accuracy": best.accuracy, "nll": best.nll, "ece": best.ece, "n": len(probe.honest)}


def fit_shuffled(
    probe: Probe, states: States, examples: Sequence[Example], *, config: ProbeConfig, seed: int
) -> Scores:
    """Out-of-fold scores of the probe's reader trained on shuffled labels: what a probe of its size makes of nothing.

    Near-chance scores mean that the probe's own come from the states (control tasks: Hewitt and Liang, 1909.03368).
    """
    answers = probe.answers.copy()
    answers[probe.scored] = np.random.default_rng(seed).permutation(probe.scored_answers)
    counts = np.array([len(e.options) for e in examples])
    answers = answers % counts  # a shuffled answer may lie beyond a shorter row's options
    return refit(probe, states, examples, answers, config=config)


def refit(
    probe: Probe, states: States, examples: Sequence[Example], answers: np.ndarray, *, config: ProbeConfig
) -> Scores:
    """Out-of-fold scores of the probe's main reader, at its middle depth, fitted anew to other states or answers.

    Args:
        probe: Says layout, position, depth, family and folds.
        states: States of the labelled rows.
        examples: The labelled rows in the probe's order.
        answers: (n,) what to learn.
        config: Strengths and tolerance.
    """
    reader, scored = probe.reader, probe.scored
    strengths = sorted(strengths_of(reader.family, config.l2))
    fits = crossfit(
        states.blocks(reader.layout, reader.position, reader.depth, probe.ids),
        answers,
        presence(examples, probe.honest.shape[1]),
        probe.folds,
        strengths,
        tolerance=config.tolerance,
        family=reader.family,
    )
    kin, vector = by_strength(len(strengths)), probe.task_kind == "classification"
    honest = choose(fits, answers[scored], probe.folds[scored], kin, vector=vector).honest
    return score([softmax(row[np.isfinite(row)]) for row in honest], answers[scored].tolist())


def reliability(probe: Probe) -> dict[str, Any]:
    """Out-of-fold scores of the chosen readers before and after calibration, each with the bins of its reliability."""
    answers = probe.scored_answers.tolist()
    found = {}
    for name, probs in (("before", probe.before_calibration), ("after", probe.after_calibration)):
        counts, confidence, accuracy = calibration_bins(np.array([p.max() for p in probs]), correct(probs, answers))
        bins = {"n": counts.tolist(), "confidence": confidence.tolist(), "accuracy": accuracy.tolist()}
        found[name] = {**score(probs, answers), "bins": bins}
    return found
