"""Probe: what fitting leaves behind. It reads rows it has not seen, and knows what it is worth on those it has."""

from __future__ import annotations

import csv
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from probekd.config import Layout, Position
from probekd.errors import StoreError
from probekd.files import read_json, replacing, write_json
from probekd.metrics import Scores, score
from probekd.probes.calibrate import Calibration
from probekd.probes.families import Fit, fit_from_arrays
from probekd.probes.outputs import WORDS_LAYOUT, raw_logits
from probekd.probes.reader import Candidate, Reader
from probekd.probes.unseen import class_counts, fill, mean_of_models, unseen_shares
from probekd.states import States
from probekd.targets import softmax

FORMAT = 4
# Rows read at a time, so that a pool of any length needs the memory of this many.
ROWS_AT_ONCE = 16384


@dataclass(frozen=True, kw_only=True)
class Probe:
    """A fitted probe: fold models of one or several readers, their calibration, and the out-of-fold word on its rows.

    Attributes:
        task_kind: Kind of the task it was trained on.
        readers: What the labelled rows chose: one reader, or several that are added up.
        weights: (J,) of the readers' logits.
        temperatures: (J,) of the readers' own out-of-fold logits, at which a reader that never saw a class says of it
            what ``unseen_shares`` gives; where no reader saw it, the whole says so once calibrated.
        words: Weights of the raw logits of output readouts, by name: a stack may listen to the teacher's words too.
        fits: For each reader the fold models of each of its depths.
        calibration: Fitted on out-of-fold logits, of the rows that chose the readers.
        sharpness: What the mean of the fold models is multiplied by as it is calibrated (``calibrate.sharpness``).
        flattery: What it is divided by, because the rows that chose flatter what they chose (``choose.flattery``).
        teacher: Fingerprint and size of the teacher whose states it reads.
        ids: Labelled rows.
        answers: (n,) their gold indices.
        folds: (n,) their folds (of the first repeat); -1 for rows that are the only ones of their class, which train every
            model and are not scored.
        honest: (m, K) calibrated logits of the scored rows, -inf beyond a row's options; the readers of a fold were
            chosen without it.
        uncalibrated: (m, K) the chosen readers' out-of-fold logits before calibration.
        fold_readers: The readers chosen for each fold, of each repeat.
        candidates: Every reader tried.
    """

    task_kind: str
    readers: tuple[Reader, ...]
    weights: tuple[float, ...]
    temperatures: tuple[float, ...]
    words: Mapping[str, float]
    fits: tuple[Mapping[int, Fit], ...]
    calibration: Calibration
    sharpness: float
    flattery: float
    teacher: Mapping[str, Any]
    ids: tuple[str, ...]
    answers: np.ndarray
    folds: np.ndarray
    honest: np.ndarray
    uncalibrated: np.ndarray
    fold_readers: tuple[tuple[Reader, ...], ...]
    candidates: tuple[Candidate, ...]

    @property
    def reader(self) -> Reader:
        """The reader with the most weight."""
        return self.readers[int(np.argmax(self.weights))]

    @property
    def needs(self) -> dict[Layout, tuple[tuple[Position, ...], tuple[int, ...]]]:
        """For each layout the positions and depths that reading takes."""
        found: dict[Layout, tuple[set[Position], set[int]]] = {}
        for reader, fits in zip(self.readers, self.fits, strict=True):
            positions, depths = found.setdefault(reader.layout, (set(), set()))
            positions.add(reader.position)
            depths.update(fits)
        return {layout: (tuple(sorted(p)), tuple(sorted(d))) for layout, (p, d) in found.items()}

    @property
    def layouts_of_words(self) -> tuple[Layout, ...]:
        """Layouts that the output readouts of a stack are read in."""
        return tuple(dict.fromkeys(WORDS_LAYOUT[name.split(",")[0]] for name in self.words))

    @property
    def scored(self) -> np.ndarray:
        """(n,) bool: the labelled rows that a fold holds out."""
        return np.asarray(self.folds >= 0)

    @property
    def scored_answers(self) -> np.ndarray:
        """(m,) gold indices of the rows of ``honest``."""
        return np.asarray(self.answers[self.scored])

    def logits(self, states: States, ids: Sequence[str]) -> list[np.ndarray]:
        """Calibrated logits (k_i,) of rows that the probe was not trained on: the mean of the fold models.

        A class that no labelled row has gets what ``unseen_shares`` gives it.

        Raises:
            StoreError: the states come from another teacher than the probe's.
        """
        if states.teacher["fingerprint"] != self.teacher["fingerprint"]:
            raise StoreError(
                f"these states come from {states.teacher['name']}, the probe was trained on {self.teacher['name']} (other weights)"
            )
        found: list[np.ndarray] = []
        for start in range(0, len(ids), ROWS_AT_ONCE):
            found += self._some_logits(states, ids[start : start + ROWS_AT_ONCE])
        return found

    def _some_logits(self, states: States, ids: Sequence[str]) -> list[np.ndarray]:
        counts = states.column(self.readers[0].layout, "num_options", ids)
        width = max(counts)
        present = np.arange(width) < np.array(counts)[:, None]
        everything = np.ones((1, len(self.ids)), dtype=bool)
        shares = unseen_shares(class_counts(self.answers, everything, width)[:, :width], present)
        total = np.zeros((len(ids), width))
        seen = np.zeros_like(present)
        for reader, weight, temperature, fits in zip(
            self.readers, self.weights, self.temperatures, self.fits, strict=True
        ):
            said = np.zeros_like(total)
            for depth, fit in fits.items():
                each = mean_of_models(fit.logits(states.blocks(reader.layout, reader.position, depth, ids)))[:, :width]
                # A row may have an option that no labelled row had.
                missing = ((0, 0), (0, width - each.shape[1]))
                said += np.pad(each, missing, constant_values=-np.inf) / len(fits)
            seen |= np.isfinite(said) & present
            total += weight * np.where(present, fill(said, shares, temperature), 0.0)
        for name, weight in self.words.items():
            raw = raw_logits(states, name, ids, counts, total.shape[1])
            total += weight * np.where(np.isfinite(raw), raw, 0.0)
        calibrated = fill(
            self.calibration.softened(self.flattery / self.sharpness).apply(np.where(seen, total, -np.inf)), shares
        )
        return [row[:k] for row, k in zip(calibrated, counts, strict=True)]

    @property
    def out_of_fold(self) -> list[np.ndarray]:
        """Distribution of each scored row from a probe that neither saw nor was chosen by it."""
        return [softmax(row[np.isfinite(row)]) for row in self.honest]

    @cached_property
    def scores(self) -> Scores:
        """Out-of-fold scores on the labelled rows: an honest estimate, unlike the chosen candidate's own."""
        return score(self.out_of_fold, self.scored_answers.tolist())

    @cached_property
    def before_calibration(self) -> list[np.ndarray]:
        """Distribution of each scored row by the chosen readers, from logits that no calibration has touched."""
        return [softmax(row[np.isfinite(row)]) for row in self.uncalibrated]

    @cached_property
    def after_calibration(self) -> list[np.ndarray]:
        """The same, calibrated; readers and calibration were chosen by these very rows, so it flatters them."""
        return [softmax(self.calibration.apply(row[np.isfinite(row)])) for row in self.uncalibrated]

    @cached_property
    def where_chosen(self) -> Scores:
        """Scores of the chosen readers on the rows that chose them: too good, by how much ``scores`` says."""
        return score(self.after_calibration, self.scored_answers.tolist())

    def describe(self) -> list[dict[str, Any]]:
        """The readers with their depths and weights."""
        return [
            {**vars(reader), "depths": list(fits), "weight": weight, "temperature": temperature}
            for reader, weight, temperature, fits in zip(
                self.readers, self.weights, self.temperatures, self.fits, strict=True
            )
        ]

    def save(self, directory: Path, summary: Mapping[str, Any] | None = None) -> None:
        """Write probe.json, probe.safetensors and depths.csv; ``summary`` adds keys to probe.json."""
        from safetensors.numpy import save_file

        directory.mkdir(parents=True, exist_ok=True)
        arrays = {
            "honest": self.honest,
            "uncalibrated": self.uncalibrated,
            "folds": self.folds.astype(np.int64),
            "answers": self.answers.astype(np.int64),
            "calibration.scale": self.calibration.scale,
            "calibration.shift": self.calibration.shift,
        }
        for number, fits in enumerate(self.fits):
            for depth, fit in fits.items():
                arrays |= {f"{number}.{depth}.{f.name}": getattr(fit, f.name).numpy() for f in fields(fit)}  # type: ignore[arg-type]
        with replacing(directory / "probe.safetensors") as temporary:
            save_file({k: np.ascontiguousarray(v) for k, v in arrays.items()}, temporary)
        _write_candidates(directory / "depths.csv", self.candidates)
        write_json(
            directory / "probe.json",
            {
                "format": FORMAT,
                "task_kind": self.task_kind,
                "reader": {**vars(self.reader), "temperature": self.calibration.temperature},
                "readers": self.describe(),
                "words": dict(self.words),
                "calibration": self.calibration.kind,
                "lapse": self.calibration.lapse,
                "sharpness": self.sharpness,
                "flattery": self.flattery,
                "fold_readers": [[vars(r) for r in readers] for readers in self.fold_readers],
                "depths": self.teacher["blocks"],
                "folds": int(self.folds.max()) + 1,
                "labelled": len(self.ids),
                "scored": len(self.honest),
                "teacher": dict(self.teacher),
                "ids": list(self.ids),
                "optimism": {
                    "chosen_nll": self.where_chosen["nll"],
                    "outside_nll": self.scores["nll"],
                    "chosen_accuracy": self.where_chosen["accuracy"],
                    "outside_accuracy": self.scores["accuracy"],
                },
                **(summary or {}),
            },
        )

    @classmethod
    def load(cls, directory: Path) -> Probe:
        """Read what ``save`` wrote; raises StoreError for another format version."""
        from safetensors.torch import load_file

        meta = read_json(directory / "probe.json")
        if meta.get("format") != FORMAT:
            raise StoreError(
                f"{directory / 'probe.json'}: written by another version (format {meta.get('format')!r}, this is {FORMAT}); "
                "run the probe stage again"
            )
        arrays = load_file(directory / "probe.safetensors")
        readers, fits = [], []
        for number, entry in enumerate(meta["readers"]):
            reader = Reader(**{f.name: entry[f.name] for f in fields(Reader)})
            readers.append(reader)
            fits.append({depth: _fit(reader, arrays, f"{number}.{depth}.") for depth in entry["depths"]})
        numbers = {name: arrays[name].numpy() for name in ("answers", "folds", "honest", "uncalibrated")}
        return cls(
            task_kind=meta["task_kind"],
            readers=tuple(readers),
            weights=tuple(entry["weight"] for entry in meta["readers"]),
            temperatures=tuple(entry["temperature"] for entry in meta["readers"]),
            words=meta["words"],
            fits=tuple(fits),
            calibration=Calibration(
                scale=arrays["calibration.scale"].numpy(),
                shift=arrays["calibration.shift"].numpy(),
                lapse=meta["lapse"],
            ),
            sharpness=meta["sharpness"],
            flattery=meta["flattery"],
            teacher=meta["teacher"],
            ids=tuple(meta["ids"]),
            fold_readers=tuple(tuple(Reader(**r) for r in chosen) for chosen in meta["fold_readers"]),
            candidates=tuple(_read_candidates(directory / "depths.csv")),
            **numbers,
        )


def _fit(reader: Reader, arrays: Mapping[str, Any], prefix: str) -> Fit:
    own = {name.removeprefix(prefix): tensor for name, tensor in arrays.items() if name.startswith(prefix)}
    return fit_from_arrays(reader.family, own)


_COLUMNS = ("position", "depth", "kind", "l2", "accuracy", "nll", "ece", "layout", "window")


def _write_candidates(path: Path, candidates: Sequence[Candidate]) -> None:
    with replacing(path) as temporary, temporary.open("w", newline="", encoding="utf-8") as stream:
        writer = csv.writer(stream)
        writer.writerow(_COLUMNS)
        for c in candidates:
            r = c.reader
            writer.writerow([r.position, r.depth, r.family, r.l2, c.accuracy, c.nll, c.ece, r.layout, r.window])


def _read_candidates(path: Path) -> list[Candidate]:
    with path.open(newline="", encoding="utf-8") as stream:
        return [
            Candidate(
                reader=Reader(
                    layout=row["layout"],  # type: ignore[arg-type]
                    position=row["position"],  # type: ignore[arg-type]
                    depth=int(row["depth"]),
                    l2=float(row["l2"]),
                    family=row["kind"],  # type: ignore[arg-type]
                    window=int(row["window"]),
                ),
                accuracy=float(row["accuracy"]),
                nll=float(row["nll"]),
                ece=float(row["ece"]),
            )
            for row in csv.DictReader(stream)
        ]
