"""Output readouts: what the teacher says in words, given the same care as the probe.

Each gets a temperature; the label tokens also with their prior removed, and through a K x K affine map fitted on the same
labels, without which "the probe beats the logits" would in part measure who saw the labels. With less care they are the
weaker baselines of the literature: ``raw`` and ``debiased``.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from probekd.config import Layout
from probekd.metrics import Scores, score
from probekd.probes.calibrate import Calibration, gold_losses, log_softmax
from probekd.probes.choose import Choice, choose
from probekd.probes.crossfit import CrossFit, concatenate, crossfit, fit_folds, untrained
from probekd.probes.features import LinearFit
from probekd.probes.unseen import class_counts, fill, mean_of_models, unseen_shares
from probekd.states import States
from probekd.targets import SoftTargets, cross_fitted_targets, labelled_logits, softmax
from probekd.tasks.base import Example, Kind

PRIOR = "label_prior"
AFFINE_L2 = (0.003, 0.03, 0.3)
AFFINE_TOLERANCE = 1e-5
Care = Literal["raw", "debiased", "calibrated"]
"""``raw``: as the teacher says it. ``debiased``: each readout with its prior removed, and a temperature. ``calibrated``:
every readout with a temperature, the label tokens also with their prior removed and through an affine map."""
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
        calibration: Fitted on the labelled rows.
        matrix: (K, K) that the label tokens' log-probabilities go through; None where they do not.
        prior: (K,) subtracted from the logits: the mean log-probability of each label, or minus the affine map's bias;
            zeros where nothing is.
        ids: Labelled rows.
        answers: (n,).
        folds: (n,); -1 for rows that no fold holds out.
        honest: (m, K) calibrated logits of the other rows; readout and temperature of a fold were chosen without it.
        scores: ``name -> scores`` of every candidate with its temperature, over those m rows.
    """

    name: str
    layout: Layout
    calibration: Calibration
    matrix: np.ndarray | None
    prior: np.ndarray
    ids: tuple[str, ...]
    answers: np.ndarray
    folds: np.ndarray
    honest: np.ndarray
    scores: dict[str, Scores]

    def logits(self, states: States, ids: Sequence[str]) -> list[np.ndarray]:
        """Calibrated logits of rows, (k_i,) each."""
        counts = states.column(self.layout, "num_options", ids)
        width = max(len(self.prior), *counts)
        raw = raw_logits(states, self.name, ids, counts, width)
        # A pool or test row may have a label that no labelled row had; nothing is known of its prior.
        prior = np.pad(self.prior, (0, width - len(self.prior)))
        if self.matrix is None:
            return [self.calibration.apply(row[:k] - prior[:k]) for row, k in zip(raw, counts, strict=True)]
        # The map was learned, and not for labels that no row had.
        learned = class_counts(self.answers, np.ones((1, len(self.ids)), dtype=bool), width)
        said = np.where(learned > 0, log_softmax(raw) @ self.matrix - prior, -np.inf)
        return list(fill(self.calibration.apply(said), unseen_shares(learned, np.isfinite(raw))))

    @property
    def out_of_fold(self) -> list[np.ndarray]:
        """Distribution of each row of ``honest``; readout and temperature were chosen without its fold."""
        return [softmax(row[np.isfinite(row)]) for row in self.honest]

    def targets(self, states: States) -> SoftTargets:
        """Soft labels of the labelled rows and the pool, from words alone."""
        place = {row_id: i for i, row_id in enumerate(self.ids)}
        labelled, pool = states.ids(self.layout, "train"), states.ids(self.layout, "unlabelled")
        rows = [place[row_id] for row_id in labelled]
        said = labelled_logits(self.honest, self.answers, self.folds)
        return cross_fitted_targets(
            labelled,
            [said[i] for i in rows],
            [int(self.folds[i]) for i in rows],
            pool,
            self.logits(states, pool) if pool else [],
        )

    def to_json(self) -> dict[str, Any]:
        """Everything, for ``from_json``."""
        return {
            **{k: v for k, v in vars(self).items() if k not in ("calibration", "honest")},
            "matrix": None if self.matrix is None else self.matrix.tolist(),
            "prior": self.prior.tolist(),
            "scale": self.calibration.scale.tolist(),
            "shift": self.calibration.shift.tolist(),
            "lapse": self.calibration.lapse,
            "answers": self.answers.tolist(),
            "folds": self.folds.tolist(),
            "honest": [row[np.isfinite(row)].tolist() for row in self.honest],
        }

    @classmethod
    def from_json(cls, value: dict[str, Any]) -> OutputReadout:
        """What ``to_json`` gave."""
        honest = _pad(value["honest"], len(value["prior"]))
        rest = {k: v for k, v in value.items() if k not in ("scale", "shift", "lapse")}
        arrays = {
            "calibration": Calibration(
                scale=np.array(value["scale"]), shift=np.array(value["shift"]), lapse=value["lapse"]
            ),
            "matrix": None if value["matrix"] is None else np.array(value["matrix"]),
            "prior": np.array(value["prior"]),
            "answers": np.array(value["answers"]),
            "folds": np.array(value["folds"]),
            "honest": honest,
            "ids": tuple(value["ids"]),
        }
        return cls(**{**rest, **arrays})


def readout_names(states: States) -> list[str]:
    """Raw readouts that the stores recorded; a teacher without a language-model head has only the label prior."""
    names = []
    if "listed" in states.layouts and "label_logits" in states.outputs("listed"):
        names.append("label_token")
    if "branched" in states.layouts and "option_loglik" in states.outputs("branched"):
        names += [f"option_likelihood, {unit}" for unit in ("sum", "per token", "per byte")]
    return names or [PRIOR]


@dataclass(frozen=True, kw_only=True)
class _Tried:
    """One way of reading the words, cross-fitted where it learns from labels, and how to apply it to other rows."""

    name: str
    fits: CrossFit
    prior: np.ndarray
    matrix: np.ndarray | None = None


def fit_outputs(
    states: States, examples: Sequence[Example], folds: np.ndarray, *, kind: Kind, care: Care = "calibrated"
) -> OutputReadout:
    """Choose the best output readout by out-of-fold log-loss, among those that a care makes.

    Args:
        states: What the teacher said of the labelled rows.
        examples: The labelled rows.
        folds: (n,); rows of fold -1 train the affine map and are not scored.
        kind: Of the task. Rows of multiple choice that are to come may have other options than these, and no map between
            options is fitted.
        care: What is tried.
    """
    counts = [len(e.options) for e in examples]
    answers, scored = np.array([e.answer for e in examples]), folds >= 0
    tried = _tried(states, examples, counts, answers, folds, kind, care)
    fits = concatenate([t.fits for t in tried])
    if care == "raw":
        choice = _choose_uncalibrated(fits, answers[scored], folds[scored])
    else:
        choice = choose(fits, answers[scored], folds[scored], vector=kind == "classification")
    best = tried[choice.chosen]
    scores = {
        t.name: score([softmax(row[np.isfinite(row)] / T) for row in t.fits.outer[0]], answers[scored].tolist())
        for t, T in zip(tried, choice.temperatures, strict=True)
    }
    return OutputReadout(
        name=best.name,
        layout=layout_of(best.name, states),
        calibration=choice.calibration,
        matrix=best.matrix,
        prior=best.prior,
        ids=tuple(e.id for e in examples),
        answers=answers,
        folds=folds,
        honest=choice.honest,
        scores=scores,
    )


def _tried(
    states: States,
    examples: Sequence[Example],
    counts: Sequence[int],
    answers: np.ndarray,
    folds: np.ndarray,
    kind: Kind,
    care: Care,
) -> list[_Tried]:
    width, ids, scored = max(counts), [e.id for e in examples], folds >= 0
    own = folds[scored]
    tried: list[_Tried] = []
    for name in readout_names(states):
        if name == PRIOR:
            fits = untrained(prior_logits(counts, answers, folds, width)[None, scored], own)
            tried.append(_Tried(name=name, fits=fits, prior=-np.log(np.bincount(answers, minlength=width) + 1.0)))
            continue
        raw = raw_logits(states, name, ids, counts, width)
        if care != "debiased":
            tried.append(_Tried(name=name, fits=untrained(raw[None, scored], own), prior=np.zeros(width)))
        # The options of multiple choice have no prior likelihood but that of their place, which is hardly one.
        if care == "debiased" or (care == "calibrated" and name == "label_token"):
            prior = _mean_log_probability(raw)
            fits = untrained((raw - prior)[None, scored], own)
            tried.append(_Tried(name=f"{name}, prior removed", fits=fits, prior=prior))
        mappable = kind == "classification" and len(np.unique(answers)) > 1
        if care == "calibrated" and name == "label_token" and mappable:
            tried += _affine(name, log_softmax(raw), answers, folds)
    return tried


def _choose_uncalibrated(fits: CrossFit, answers: np.ndarray, folds: np.ndarray) -> Choice:
    """The candidate with the lowest log-loss as it stands, chosen for each fold by the others."""
    losses = gold_losses(fits.outer, answers)
    by_fold = tuple(int(losses[:, folds != f].mean(1).argmin()) for f in range(int(folds.max()) + 1))
    width = fits.outer.shape[-1]
    none = Calibration(scale=np.ones(width), shift=np.zeros(width))
    return Choice(
        chosen=int(losses.mean(1).argmin()),
        calibration=none,
        temperatures=np.ones(len(losses)),
        losses=losses.mean(1),
        honest=fits.outer[np.array(by_fold)[folds], np.arange(len(answers))].astype(np.float64),
        by_fold=by_fold,
        fold_calibrations=(none,) * len(by_fold),
    )


def _affine(name: str, logp: np.ndarray, answers: np.ndarray, folds: np.ndarray) -> list[_Tried]:
    """Logistic regression on the K log-probabilities: a K x K affine map, at several strengths."""
    x = logp.astype(np.float32)
    everything = np.ones(x.shape, dtype=bool)
    fits = crossfit(x, answers, everything, folds, AFFINE_L2, tolerance=AFFINE_TOLERANCE)
    found = []
    for number, l2 in enumerate(AFFINE_L2):
        models = fit_folds(x, answers, everything, folds, l2, tolerance=AFFINE_TOLERANCE)
        assert isinstance(models, LinearFit)
        weight, bias = models.weight.mean(0).double().numpy(), mean_of_models(models.bias[:, None].double().numpy())[0]
        bias = np.where(np.isfinite(bias), bias, 0.0)
        found.append(_Tried(name=f"{name}, affine (l2 {l2:g})", fits=fits.one(number), prior=-bias, matrix=weight))
    return found


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


def prior_logits(counts: Sequence[int], answers: np.ndarray, folds: np.ndarray, width: int) -> np.ndarray:
    """(n, width) log label counts (plus one) of the other folds, -inf beyond a row's own ``counts`` options."""
    out = _pad([[0.0] * k for k in counts], width)
    for f in range(int(folds.max()) + 1):
        out[folds == f] += np.log(np.bincount(answers[folds != f], minlength=width) + 1.0)
    return out
