"""What the students of a run learn from: which there are, where their targets lie, and how these are made."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from probekd.config import Layout, Method, RunConfig
from probekd.files import replacing
from probekd.methods import (
    RECIPES,
    TEACHER_VIEWS,
    Evidence,
    TeacherReading,
    View,
    cares_of,
    padded,
    student_view,
    views_of,
    widest,
)
from probekd.methods.hidden import HiddenPlace, hidden_place
from probekd.probes.alone import fit_alone
from probekd.probes.outputs import Care, OutputReadout
from probekd.probes.probe import Probe
from probekd.states import States
from probekd.targets import SoftTargets, labelled_logits
from probekd.tasks.base import Task

TARGETS = "targets.parquet"


def students_of(config: RunConfig) -> dict[Method, str]:
    """Directory of each student: the method's own is ``student``, baselines lie beside their targets.

    A student that teaches another one comes before it.
    """
    own = config.student.method
    places: dict[Method, str] = {own: "student"}
    places |= {m: f"baselines/{m}/student" for m in config.student.baselines if m != own}
    return dict(sorted(places.items(), key=lambda item: "student" in RECIPES[item[0]].views))


def place_of_targets(config: RunConfig, method: Method) -> str:
    """File of a method's targets: the run's own for the method that its student learns from a teacher by.

    What a trained student says is there only after the stage that writes the run's own.
    """
    own = method == config.student.method and any(view in TEACHER_VIEWS for view in RECIPES[method].views)
    return TARGETS if own else f"baselines/{method}/{TARGETS}"


def method_of_targets(config: RunConfig) -> Method:
    """What the run's own file of targets was made by: the probe, where its student learns from no teacher's targets."""
    own = config.student.method
    return own if place_of_targets(config, own) == TARGETS else "probe-kd"


def words_needed(config: RunConfig, outputs: Mapping[Care, OutputReadout]) -> tuple[Layout, ...]:
    """Layouts in which the pool must be read to the teacher's end, because a student learns from what it says."""
    return tuple(dict.fromkeys(outputs[care].layout for care in cares_of(views_of(students_of(config)))))


def matches_states(config: RunConfig) -> bool:
    """Whether a student learns to match the teacher's states."""
    return any(RECIPES[m].hidden for m in students_of(config))


def place_matched(config: RunConfig, task: Task, probe: Probe) -> HiddenPlace | None:
    """Where states are matched, if a student learns to match any."""
    from probekd.student.start import reads_options

    if not matches_states(config):
        return None
    place = hidden_place(probe, options=reads_options(config.student, task, probe))
    assert place is not None, "check_place comes before the probe"
    return place


@dataclass(frozen=True, kw_only=True)
class Supervision:
    """A run whose labelled rows and pool have been read.

    Attributes:
        config: Of the run.
        task: Labelled rows in ``train``, pool in ``unlabelled``.
        states: Of all these rows.
        probe: Fitted on the labelled rows.
        outputs: The best output readout of each care.
    """

    config: RunConfig
    task: Task
    states: States
    probe: Probe
    outputs: Mapping[Care, OutputReadout]

    def write(self, path: Path) -> list[str]:
        """Write the targets of every method that needs no trained student, and the probe's; returns their files' names."""
        evidence = self.evidence()
        made = {
            place_of_targets(self.config, method): RECIPES[method].make(evidence)
            for method in students_of(self.config)
            if not RECIPES[method].gold and "student" not in RECIPES[method].views
        }
        if TARGETS not in made:
            made[TARGETS] = RECIPES["probe-kd"].make(evidence)
        for name, targets in made.items():
            save_targets(path / name, targets)
        return list(made)

    def evidence(self) -> Evidence:
        """The views that the run's methods need, and the probe's."""
        reading = TeacherReading(
            task=self.task,
            states=self.states,
            probe=self.probe,
            outputs=self.outputs,
            config=self.config.probe,
            seed=self.config.seed,
        )
        wanted = dict.fromkeys((*views_of(students_of(self.config)), "probe"))
        views = {name: reading.view(name) for name in wanted if name in TEACHER_VIEWS}
        evidence = Evidence(labelled=reading.labelled, pool=reading.pool, folds=self.probe.folds, views=views)
        if "student_alone" in wanted:
            evidence = replace(evidence, views={**views, "student_alone": self._alone(evidence)})
        return evidence

    def _alone(self, evidence: Evidence) -> View:
        """What a linear head makes of the student's frozen embedding."""
        from probekd.student import frozen_embeddings

        config = self.config.student
        rows = [*evidence.labelled, *evidence.pool]
        vectors = frozen_embeddings(config.model, rows, self.task.kind, config=config)
        n = len(evidence.labelled)
        fitted = fit_alone(vectors[:n], evidence.labelled, evidence.folds, self.config.probe)
        honest = labelled_logits(fitted.honest, evidence.answers, evidence.folds)
        width = widest(rows)
        return View(honest=padded(honest, width), pool=padded(fitted.logits(vectors[n:], evidence.pool), width))


def save_targets(path: Path, targets: SoftTargets) -> None:
    """Write a file of targets, or none of it."""
    with replacing(path) as temporary:
        targets.save(temporary)


def self_training(task: Task, probs: Sequence[np.ndarray]) -> SoftTargets:
    """Targets of ``self-train`` from what the student of ``labels`` says of the pool, (k_i,) each."""
    labelled, pool = tuple(task.rows("train")), tuple(task.rows("unlabelled"))
    view = student_view(labelled, probs, widest((*labelled, *pool)))
    evidence = Evidence(labelled=labelled, pool=pool, folds=np.full(len(labelled), -1), views={"student": view})
    return RECIPES["self-train"].make(evidence)
