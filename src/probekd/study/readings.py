"""What a teacher says of a draw, fitted once and kept as a file for every student and method."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from probekd.config import ProbeConfig, TeacherConfig
from probekd.extraction import extract
from probekd.files import read_json, replacing, save_tensors, write_json
from probekd.methods import TEACHER_VIEWS, TeacherReading, View, ViewName, cares_of, padded
from probekd.methods.hidden import hidden_place
from probekd.metrics import score
from probekd.probes.fit import fit_probes
from probekd.probes.outputs import fit_outputs
from probekd.probes.probe import Probe
from probekd.progress import Progress
from probekd.states import States
from probekd.study.universe import Universe
from probekd.tasks.base import Task

Rows = Sequence[np.ndarray]


@dataclass(frozen=True)
class Source:
    """A teacher in front of a task's rows; its states are read once, or found in the cache, when somebody asks."""

    universe: Universe
    teacher: TeacherConfig
    progress: Progress

    @cached_property
    def states(self) -> States:
        """States of every row of the universe and the test split, at all depths."""
        return extract(self.teacher, self.universe.task, progress=self.progress)


@dataclass(frozen=True, kw_only=True)
class Reading:
    """A draw as a teacher sees it.

    Attributes:
        ids: Labelled rows in the order of the views.
        folds: (n,) their folds.
        pool: Unlabelled rows in the order of the views.
        views: Of the teacher.
        test: Logits (t, K) of the test rows by ``probe`` and ``teacher_output``.
        summary: What was chosen, out-of-fold scores, the reader of hidden states, and tokens read.
    """

    ids: tuple[str, ...]
    folds: np.ndarray
    pool: tuple[str, ...]
    views: Mapping[ViewName, View]
    test: Mapping[str, np.ndarray]
    summary: Mapping[str, Any]

    def save(self, directory: Path) -> None:
        """Write ``reading.json`` and ``views.safetensors``."""
        import torch

        arrays = {f"test.{name}": logits for name, logits in self.test.items()}
        for name, view in self.views.items():
            arrays |= {f"honest.{name}": view.honest, f"pool.{name}": view.pool}
        tensors = {name: torch.from_numpy(np.ascontiguousarray(a, dtype=np.float32)) for name, a in arrays.items()}
        value = {"ids": self.ids, "folds": self.folds.tolist(), "pool": self.pool, "summary": self.summary}
        with replacing(directory) as unfinished:
            unfinished.mkdir()
            save_tensors(tensors, unfinished / "views.safetensors", {})
            write_json(unfinished / "reading.json", value)

    @classmethod
    def load(cls, directory: Path) -> Reading:
        """What ``save`` wrote."""
        from safetensors.numpy import load_file

        value = read_json(directory / "reading.json")
        arrays = {name: a.astype(np.float64) for name, a in load_file(directory / "views.safetensors").items()}
        names = [name.partition(".")[2] for name in arrays if name.startswith("honest.")]
        views = {name: View(honest=arrays[f"honest.{name}"], pool=arrays[f"pool.{name}"]) for name in names}
        return cls(
            ids=tuple(value["ids"]),
            folds=np.array(value["folds"]),
            pool=tuple(value["pool"]),
            views=views,  # type: ignore[arg-type]
            test={name.partition(".")[2]: a for name, a in arrays.items() if name.startswith("test.")},
            summary=value["summary"],
        )


def read_draw(
    source: Source, task: Task, *, views: Sequence[ViewName], config: ProbeConfig, seed: int, progress: Progress
) -> Reading:
    """Fit the probe and the output readouts to a draw and ask them about every row.

    Args:
        source: The states.
        task: The draw: labelled rows in ``train``, pool in ``unlabelled``.
        views: Those that the study's methods need; the probe and the calibrated readout are always fitted.
        config: Of the probe.
        seed: Of the folds.
        progress: Told each depth.
    """
    states, test = source.states, [e.id for e in task.rows("test")]
    probe = fit_probes(states, task, config=config, seed=seed, progress=progress)
    by_id = {e.id: e for e in task.rows("train")}
    labelled = [by_id[i] for i in probe.ids]
    cares = dict.fromkeys(("calibrated", *cares_of(views)))
    outputs = {care: fit_outputs(states, labelled, probe.folds, kind=task.kind, care=care) for care in cares}
    reading = TeacherReading(task=task, states=states, probe=probe, outputs=outputs, config=config, seed=seed)
    named = dict.fromkeys(("probe", "output_calibrated", *(v for v in views if v in TEACHER_VIEWS)))
    best = outputs["calibrated"]
    answers = probe.scored_answers.tolist()
    return Reading(
        ids=probe.ids,
        folds=probe.folds,
        pool=tuple(e.id for e in reading.pool),
        views={name: reading.view(name) for name in named},
        test={
            "probe": _matrix(probe.logits(states, test)),
            "teacher_output": _matrix(best.logits(states, test)),
        },
        summary={
            "probe": {**probe.scores, "readers": probe.describe(), "words": dict(probe.words)},
            "teacher_output": {**score(best.out_of_fold, answers), "readout": best.name},
            "hidden": _places(probe),
            "tokens": _tokens(states, reading),
        },
    )


def _places(probe: Probe) -> dict[str, Any]:
    """Where states are matched: of a student that reads a row's options one by one, and of one that reads the row."""
    found = {name: hidden_place(probe, options=name == "options") for name in ("options", "row")}
    return {name: vars(place) for name, place in found.items() if place is not None}


def _matrix(rows: Rows) -> np.ndarray:
    return padded(rows, max(map(len, rows)))


def _tokens(states: States, reading: TeacherReading) -> dict[str, Any]:
    """Teacher tokens of the labelled rows, and of the pool by layout; and the layouts that each view reads the pool in."""
    rows = {"labelled": list(reading.probe.ids), "pool": [e.id for e in reading.pool]}
    by_layout = {
        split: {layout: sum(states.column(layout, "num_tokens", ids)) for layout in states.layouts}
        for split, ids in rows.items()
    }
    probe = sorted({*reading.probe.needs, *reading.probe.layouts_of_words})
    layouts = {"probe": probe, "probe_in_sample": probe, "probe_shuffled": [reading.probe.reader.layout]}
    layouts |= {f"output_{care}": [output.layout] for care, output in reading.outputs.items()}
    return {"labelled": sum(by_layout["labelled"].values()), "pool": by_layout["pool"], "layouts": layouts}


def teacher_tokens(reading: Reading, views: Sequence[ViewName], pool: int, *, hidden: bool) -> int:
    """Tokens that a method has the teacher read: every layout of the labelled rows, to choose by, and of its pool rows what it needs.

    Args:
        reading: The draw.
        views: The method's.
        pool: Pool rows that it learns from.
        hidden: Whether it learns from the probe's hidden states.
    """
    tokens = reading.summary["tokens"]
    taught = [view for view in views if view in tokens["layouts"]] + ["probe"] * hidden
    if not taught:
        return 0
    layouts = {layout for view in taught for layout in tokens["layouts"][view]}
    whole = sum(tokens["pool"][layout] for layout in layouts)
    return int(tokens["labelled"] + (whole * pool / len(reading.pool) if pool else 0))
