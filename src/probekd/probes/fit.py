"""Fit the probe: all layouts, positions, depths and strengths cross-fitted, one reader chosen, its word made honest."""

from __future__ import annotations

import csv
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import numpy as np

from probekd.config import Layout, Position, ProbeConfig
from probekd.errors import DataError, StoreError
from probekd.files import read_json, replacing, write_json
from probekd.metrics import Scores, score
from probekd.probes.crossfit import Choice, choose, concatenate, crossfit, fit_folds
from probekd.probes.folds import assign_folds
from probekd.progress import Progress, Silent, working
from probekd.states import States
from probekd.targets import SoftTargets, cross_fitted_targets, softmax
from probekd.tasks.base import Example, Task, content_hash

FORMAT = 1


@dataclass(frozen=True, kw_only=True)
class Reader:
    """Where and how a probe reads."""

    layout: Layout
    position: Position
    depth: int
    l2: float


@dataclass(frozen=True, kw_only=True)
class Candidate:
    """A reader and its out-of-fold scores, with its own temperature; the best of many of these is too good to be true."""

    reader: Reader
    accuracy: float
    nll: float
    ece: float


@dataclass(frozen=True, kw_only=True)
class Probe:
    """A fitted probe: F linear models of one reader, their temperature, and the out-of-fold word on the labelled rows.

    Attributes:
        task_kind: Kind of the task it was trained on.
        reader: What the labelled rows chose.
        temperature: Fitted on out-of-fold logits.
        weight: (F, d, K) float32; K = 1 for option positions.
        bias: (F, K) float32.
        teacher: Fingerprint and size of the teacher whose states it reads.
        ids: Labelled rows.
        answers: (n,) their gold indices.
        folds: (n,) their folds.
        honest: (n, K) calibrated logits, -inf beyond a row's options; the reader of a fold was chosen without it.
        fold_readers: The reader chosen for each fold.
        candidates: Every reader tried.
    """

    task_kind: str
    reader: Reader
    temperature: float
    weight: np.ndarray
    bias: np.ndarray
    teacher: Mapping[str, Any]
    ids: tuple[str, ...]
    answers: np.ndarray
    folds: np.ndarray
    honest: np.ndarray
    fold_readers: tuple[Reader, ...]
    candidates: tuple[Candidate, ...]

    def logits(self, states: States, ids: Sequence[str]) -> list[np.ndarray]:
        """Calibrated logits (k_i,) of rows that the probe was not trained on: the mean of the fold models.

        Raises:
            StoreError: the states come from another teacher than the probe's.
            DataError: they are ``answer`` states of several option orders.
        """
        if states.teacher["fingerprint"] != self.teacher["fingerprint"]:
            raise StoreError(
                f"these states come from {states.teacher['name']}, the probe was trained on {self.teacher['name']} (other weights)"
            )
        read = self.reader
        check_one_order(states, read.layout, read.position)
        x = states.read(read.layout, read.position, read.depth, ids)
        weight, bias = self.weight.mean(0), self.bias.mean(0)  # the mean of linear models is the model of the mean
        scores = (x @ weight)[..., 0] + bias if x.ndim == 3 else x @ weight + bias
        counts = states.column(read.layout, "num_options", ids)
        # A row may have an option that no labelled row had; a K-way model that never saw a class gives it logit 0.
        scores = np.pad(scores, ((0, 0), (0, max(0, max(counts) - scores.shape[1]))))
        return [row[:k].astype(np.float64) / self.temperature for row, k in zip(scores, counts, strict=True)]

    @property
    def out_of_fold(self) -> list[np.ndarray]:
        """Distribution of each labelled row from a probe that neither saw nor was chosen by it."""
        return [softmax(row[np.isfinite(row)]) for row in self.honest]

    @property
    def scores(self) -> Scores:
        """Out-of-fold scores on the labelled rows: an honest estimate, unlike the chosen candidate's own."""
        return score(self.out_of_fold, self.answers.tolist())

    def save(self, directory: Path, summary: Mapping[str, Any] | None = None) -> None:
        """Write probe.json, probe.safetensors and depths.csv; ``summary`` adds keys to probe.json."""
        from safetensors.numpy import save_file

        directory.mkdir(parents=True, exist_ok=True)
        arrays = {
            "weight": self.weight.astype(np.float32),
            "bias": self.bias.astype(np.float32),
            "honest": self.honest,
            "folds": self.folds.astype(np.int64),
            "answers": self.answers.astype(np.int64),
        }
        with replacing(directory / "probe.safetensors") as temporary:
            save_file({k: np.ascontiguousarray(v) for k, v in arrays.items()}, temporary)
        with (
            replacing(directory / "depths.csv") as temporary,
            temporary.open("w", newline="", encoding="utf-8") as stream,
        ):
            writer = csv.writer(stream)
            writer.writerow(["position", "depth", "kind", "l2", "accuracy", "nll", "ece", "layout"])
            for c in self.candidates:
                r = c.reader
                writer.writerow([r.position, r.depth, "logistic", r.l2, c.accuracy, c.nll, c.ece, r.layout])
        chosen = next(c for c in self.candidates if c.reader == self.reader)
        write_json(
            directory / "probe.json",
            {
                "format": FORMAT,
                "task_kind": self.task_kind,
                "reader": {**vars(self.reader), "temperature": self.temperature},
                "fold_readers": [vars(r) for r in self.fold_readers],
                "depths": self.teacher["blocks"],
                "folds": int(self.folds.max()) + 1,
                "labelled": len(self.ids),
                "teacher": dict(self.teacher),
                "ids": list(self.ids),
                "optimism": {
                    "chosen_nll": chosen.nll,
                    "outside_nll": self.scores["nll"],
                    "chosen_accuracy": chosen.accuracy,
                    "outside_accuracy": self.scores["accuracy"],
                },
                **(summary or {}),
            },
        )

    @classmethod
    def load(cls, directory: Path) -> Probe:
        """Read what ``save`` wrote; raises StoreError for another format version."""
        from safetensors.numpy import load_file

        meta = read_json(directory / "probe.json")
        if meta.get("format") != FORMAT:
            raise StoreError(
                f"{directory / 'probe.json'}: written by another version (format {meta.get('format')!r}, this is {FORMAT})"
            )
        arrays = load_file(directory / "probe.safetensors")
        reader = {k: v for k, v in meta["reader"].items() if k != "temperature"}
        return cls(
            task_kind=meta["task_kind"],
            reader=Reader(**reader),
            temperature=meta["reader"]["temperature"],
            teacher=meta["teacher"],
            ids=tuple(meta["ids"]),
            fold_readers=tuple(Reader(**r) for r in meta["fold_readers"]),
            candidates=tuple(_read_candidates(directory / "depths.csv")),
            **arrays,
        )


def _read_candidates(path: Path) -> list[Candidate]:
    with path.open(newline="", encoding="utf-8") as stream:
        return [
            Candidate(
                reader=Reader(
                    layout=cast(Layout, row["layout"]),
                    position=cast(Position, row["position"]),
                    depth=int(row["depth"]),
                    l2=float(row["l2"]),
                ),
                accuracy=float(row["accuracy"]),
                nll=float(row["nll"]),
                ece=float(row["ece"]),
            )
            for row in csv.DictReader(stream)
        ]


def check_one_order(states: States, layout: Layout, position: Position) -> None:
    """Raise DataError for ``answer`` states of several option orders: (n, m, d) must not pass for option states."""
    if position == "answer" and states.permutations(layout) > 1:
        raise DataError(
            f"the answer states were read in {states.permutations(layout)} option orders, which these probes do not read; "
            "set probe.positions: [option_end, option_mean], or prompt.permutations: 1"
        )


def presence(examples: Sequence[Example], width: int) -> np.ndarray:
    """(n, width) bool: which options each row has."""
    return np.arange(width) < np.array([len(e.options) for e in examples])[:, None]


def fit_probes(
    states: States, task: Task, *, config: ProbeConfig | None = None, seed: int = 0, progress: Progress | None = None
) -> Probe:
    """Train logistic probes on every layout, position, depth and strength, and choose one by out-of-fold log-loss.

    Only labelled ``train`` rows are used. Option positions are read by one scorer shared by all options, the ``answer``
    position by a K-way probe.

    Args:
        states: States of the labelled rows.
        task: The rows.
        config: Folds, strengths and what to try.
        seed: Decides the folds.
        progress: Told each depth as it is done.

    Raises:
        DataError: too few labels for the folds, no states that the config admits, or ``answer`` states of several
            option orders.
    """
    config = config or ProbeConfig()
    progress = progress or Silent()
    examples = [e for e in task.rows("train") if e.answer is not None]
    folds = assign_folds(examples, task.kind, folds=config.folds, seed=seed)
    # Rows in an order of their own, so that the solver's rounding does not depend on the file's.
    order = sorted(range(len(examples)), key=lambda i: content_hash(examples[i].id))
    examples, folds = [examples[i] for i in order], folds[order]
    ids = [e.id for e in examples]
    answers = np.array([e.answer for e in examples])
    width = max(len(e.options) for e in examples)
    present = presence(examples, width)
    views = [
        (layout, position, depth)
        for layout in states.layouts
        for position in states.positions(layout)
        if config.positions is None or position in config.positions
        for depth in states.depths(layout)
        if config.depths is None or depth in config.depths
    ]
    if not views:
        raise DataError(
            "the probe config admits none of the states' positions and depths; widen probe.positions or probe.depths"
        )
    for layout, position, _ in views:
        check_one_order(states, layout, position)
    fits = []
    with working(progress, "fitting probes", len(views), "depths"):
        for layout, position, depth in views:
            x = states.read(layout, position, depth, ids)
            x = x[:, :width] if x.ndim == 3 else x
            fits.append(crossfit(x, answers, present, folds, config.l2, tolerance=config.tolerance))
            progress.advance(1)
    readers = [Reader(layout=lay, position=pos, depth=dep, l2=l2) for lay, pos, dep in views for l2 in config.l2]
    candidates = concatenate(fits)
    choice = choose(candidates, answers, folds)
    chosen = readers[choice.chosen]
    x = states.read(chosen.layout, chosen.position, chosen.depth, ids)
    x = x[:, :width] if x.ndim == 3 else x
    final = fit_folds(x, answers, present, folds, chosen.l2, tolerance=config.tolerance)
    return Probe(
        task_kind=task.kind,
        reader=chosen,
        temperature=choice.temperature,
        weight=final.weight.numpy(),
        bias=final.bias.numpy(),
        teacher=states.teacher,
        ids=tuple(ids),
        answers=answers,
        folds=folds,
        honest=choice.honest,
        fold_readers=tuple(readers[c] for c in choice.by_fold),
        candidates=tuple(_scored(readers, candidates.outer, choice, examples)),
    )


def _scored(
    readers: Sequence[Reader], outer: np.ndarray, choice: Choice, examples: Sequence[Example]
) -> list[Candidate]:
    answers = [e.answer for e in examples if e.answer is not None]
    counts = [len(e.options) for e in examples]
    result = []
    for reader, logits, temperature in zip(readers, outer, choice.temperatures, strict=True):
        probs = [softmax(row[:k] / temperature) for row, k in zip(logits, counts, strict=True)]
        scores = score(probs, answers)
        result.append(Candidate(reader=reader, accuracy=scores["accuracy"], nll=scores["nll"], ece=scores["ece"]))
    return result


def fit_alone(features: np.ndarray, examples: Sequence[Example], folds: np.ndarray, config: ProbeConfig) -> np.ndarray:
    """What the student can do by itself: calibrated out-of-fold logits (n, K) of a linear head on its frozen embedding.

    The folds, the strengths and the nested choice are the probe's own; so is the label budget.

    Args:
        features: (n, 1, d) for classification, (n, k, d) for multiple choice.
        examples: The labelled rows, in the probe's order.
        folds: (n,) the probe's folds.
        config: Strengths and tolerance.
    """
    answers = np.array([e.answer for e in examples])
    width = max(len(e.options) for e in examples)
    x = features[:, 0] if features.shape[1] == 1 else features[:, :width]
    fits = crossfit(
        np.ascontiguousarray(x), answers, presence(examples, width), folds, config.l2, tolerance=config.tolerance
    )
    return choose(fits, answers, folds).honest


def fit_shuffled(
    probe: Probe, states: States, examples: Sequence[Example], *, config: ProbeConfig, seed: int
) -> Scores:
    """Out-of-fold scores of the chosen reader trained on shuffled labels: what a probe of its size makes of nothing.

    Near-chance scores mean that the probe's own come from the states (control tasks: Hewitt and Liang, 1909.03368).
    """
    answers = np.random.default_rng(seed).permutation(probe.answers)
    counts = np.array([len(e.options) for e in examples])
    answers = answers % counts  # a shuffled answer may lie beyond a shorter row's options
    width = probe.honest.shape[1]
    x = states.read(probe.reader.layout, probe.reader.position, probe.reader.depth, probe.ids)
    x = x[:, :width] if x.ndim == 3 else x
    fits = crossfit(x, answers, presence(examples, width), probe.folds, config.l2, tolerance=config.tolerance)
    honest = choose(fits, answers, probe.folds).honest
    return score([softmax(row[:k]) for row, k in zip(honest, counts, strict=True)], answers.tolist())


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
    pooled = probe.logits(states, pool) if pool else []
    return cross_fitted_targets(labelled, honest, [int(probe.folds[place[i]]) for i in labelled], pool, pooled)
