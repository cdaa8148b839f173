"""Output readouts: what the teacher says in words, given the same care as the probe (temperature, prior removed)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from probekd.config import Layout
from probekd.metrics import Scores, score
from probekd.probes.calibrate import log_softmax
from probekd.probes.choose import Choice, choose
from probekd.probes.crossfit import untrained
from probekd.states import States
from probekd.targets import SoftTargets, cross_fitted_targets, softmax
from probekd.tasks.base import Example

PRIOR = "label_prior"
WORDS_LAYOUT: dict[str, Layout] = {"label_token": "listed", "option_likelihood": "branched"}


def layout_of(name: str, states: States) -> Layout:
    """Layout whose states hold a readout's numbers; the label prior needs none of them."""
    return states.layouts[0] if name == PRIOR else WORDS_LAYOUT[name.split(",")[0]]


@dataclass(frozen=True, kw_only=True)
class OutputReadout:
    """The best output readout, as chosen on labelled rows.

    Attributes:
        name: Such as ``label_token``, ``label_token, prior removed`` or ``option_likelihood, per token``.
        layout: Layout whose states hold its numbers.
        temperature: Fitted on the labelled rows.
        prior: (K,) mean log-probability of each label over labelled rows, removed; zeros where none is.
        ids: Labelled rows, in the order of ``honest``.
        honest: (n, K) calibrated logits of labelled rows; readout and temperature of a fold were chosen without it.
        folds: (n,).
        scores: ``name -> scores`` of every candidate with its temperature, over labelled rows.
    """

    name: str
    layout: Layout
    temperature: float
    prior: np.ndarray
    ids: tuple[str, ...]
    honest: np.ndarray
    folds: np.ndarray
    scores: dict[str, Scores]

    def logits(self, states: States, ids: Sequence[str]) -> list[np.ndarray]:
        """Calibrated logits of rows, (k_i,) each."""
        counts = states.column(self.layout, "num_options", ids)
        width = max(len(self.prior), *counts)
        raw = raw_logits(states, self.name, ids, counts, width)
        # A pool or test row may have a label that no labelled row had; nothing is known of its prior.
        prior = np.pad(self.prior, (0, width - len(self.prior)))
        return [(row[:k] - prior[:k]) / self.temperature for row, k in zip(raw, counts, strict=True)]

    @property
    def out_of_fold(self) -> list[np.ndarray]:
        """Distribution of each labelled row; readout and temperature were chosen without its fold."""
        return [softmax(row[np.isfinite(row)]) for row in self.honest]

    def targets(self, states: States) -> SoftTargets:
        """Soft labels of the labelled rows and the pool, from words alone."""
        place = {row_id: i for i, row_id in enumerate(self.ids)}
        labelled, pool = states.ids(self.layout, "train"), states.ids(self.layout, "unlabelled")
        honest = [row[np.isfinite(row)] for row in (self.honest[place[row_id]] for row_id in labelled)]
        pooled = self.logits(states, pool) if pool else []
        return cross_fitted_targets(labelled, honest, [int(self.folds[place[i]]) for i in labelled], pool, pooled)

    def to_json(self) -> dict[str, Any]:
        """Everything, for ``from_json``."""
        return {
            **{k: v for k, v in vars(self).items() if k not in ("prior", "honest", "folds")},
            "prior": self.prior.tolist(),
            "folds": self.folds.tolist(),
            "honest": [row[np.isfinite(row)].tolist() for row in self.honest],
        }

    @classmethod
    def from_json(cls, value: dict[str, Any]) -> OutputReadout:
        """What ``to_json`` gave."""
        honest = _pad(value["honest"], len(value["prior"]))
        arrays = {
            "prior": np.array(value["prior"]),
            "folds": np.array(value["folds"]),
            "honest": honest,
            "ids": tuple(value["ids"]),
        }
        return cls(**{**value, **arrays})


def readout_names(states: States) -> list[str]:
    """Raw readouts that the stores recorded; a teacher without a language-model head has only the label prior."""
    names = []
    if "listed" in states.layouts and "label_logits" in states.outputs("listed"):
        names.append("label_token")
    if "branched" in states.layouts and "option_loglik" in states.outputs("branched"):
        names += [f"option_likelihood, {unit}" for unit in ("sum", "per token", "per byte")]
    return names or [PRIOR]


def fit_outputs(states: States, examples: Sequence[Example], folds: np.ndarray) -> OutputReadout:
    """Choose the best output readout by out-of-fold log-loss, each with its own temperature."""
    counts = [len(e.options) for e in examples]
    width, ids = max(counts), [e.id for e in examples]
    answers = np.array([e.answer for e in examples])
    names, logits, priors = [], [], []
    for name in readout_names(states):
        raw = (
            raw_logits(states, name, ids, counts, width)
            if name != PRIOR
            else _prior_logits(counts, answers, folds, width)
        )
        names.append(name)
        logits.append(raw)
        priors.append(np.zeros(width))
        if name == "label_token":
            prior = _mean_log_probability(raw)
            names.append("label_token, prior removed")
            logits.append(raw - prior)
            priors.append(prior)
    fits = untrained(np.stack(logits), folds)
    choice: Choice = choose(fits, answers, folds)
    name, prior = names[choice.chosen], priors[choice.chosen]
    if name == PRIOR:
        prior = -np.log(np.bincount(answers, minlength=width) + 1.0)
    scores = {
        n: score([softmax(row[:k] / t) for row, k in zip(x, counts, strict=True)], answers.tolist())
        for n, x, t in zip(names, logits, choice.temperatures, strict=True)
    }
    return OutputReadout(
        name=name,
        layout=layout_of(name, states),
        temperature=choice.temperature,
        prior=prior,
        ids=tuple(e.id for e in examples),
        honest=choice.honest,
        folds=folds,
        scores=scores,
    )


def raw_logits(states: States, name: str, ids: Sequence[str], counts: Sequence[int], width: int) -> np.ndarray:
    """Raw logits (n, width) of a readout (see ``readout_names``) of rows with ``counts`` options, -inf beyond them."""
    if name == PRIOR:
        return _pad([[0.0] * k for k in counts], width)
    if name.startswith("label_token"):
        return _pad(states.column("listed", "label_logits", ids), width)
    loglik = _pad(states.column("branched", "option_loglik", ids), width)
    unit = {"sum": None, "per token": "option_tokens", "per byte": "option_bytes"}[name.split(", ")[1]]
    if unit is None:
        return loglik
    return np.asarray(loglik / _pad(states.column("branched", unit, ids), width, fill=1.0))


def _pad(rows: Sequence[Sequence[Any]], width: int, fill: float = -np.inf) -> np.ndarray:
    out = np.full((len(rows), width), fill)
    for i, row in enumerate(rows):
        out[i, : len(row)] = row
    return out


def _mean_log_probability(raw: np.ndarray) -> np.ndarray:
    """(K,) mean over rows of the log-probabilities: the label prior that needs no labels (PriDe, arXiv 2309.03882)."""
    logp = log_softmax(raw)
    there = np.isfinite(logp)
    return np.asarray(np.where(there, logp, 0.0).sum(0) / np.maximum(there.sum(0), 1))


def _prior_logits(counts: Sequence[int], answers: np.ndarray, folds: np.ndarray, width: int) -> np.ndarray:
    """Log label counts (plus one) of the other folds."""
    out = _pad([[0.0] * k for k in counts], width)
    for f in range(int(folds.max()) + 1):
        out[folds == f] += np.log(np.bincount(answers[folds != f], minlength=width) + 1.0)
    return out
