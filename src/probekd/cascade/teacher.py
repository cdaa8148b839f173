"""A run's probe with its teacher, as something that answers rows."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np

from probekd.config import load_config
from probekd.errors import StoreError
from probekd.extraction import extract
from probekd.probes.probe import Probe
from probekd.probes.reading import passes
from probekd.progress import Progress, Silent
from probekd.rundir import RunDirectory
from probekd.stages import Run
from probekd.states import States
from probekd.targets import softmax
from probekd.tasks.base import Example, Task
from probekd.teacher.load import Teacher, load_teacher

ROWS = "rows"


@dataclass(frozen=True, kw_only=True, eq=False)
class ProbedTeacher:
    """A teacher that answers by what a probe reads in it.

    Attributes:
        probe: Fitted on the run's labelled rows.
        task: The run's: labels, prompt and worked examples.
        teacher: Its first blocks, up to the deepest that the probe reads; all of it where the probe listens to words too.
    """

    probe: Probe
    task: Task
    teacher: Teacher
    _scratch: TemporaryDirectory[str] = field(
        default_factory=lambda: TemporaryDirectory(prefix="probekd-cascade-"), repr=False
    )

    @classmethod
    def open(cls, run: Run) -> ProbedTeacher:
        """Load what a run chose."""
        what = list(passes(run.probe, run.task))
        deepest = None if any(w["outputs"] for w in what) else max(max(w["depths"]) for w in what)
        # A row that is too long for the teacher has no answer: it must be named, and not left out.
        config = run.config.teacher.model_copy(update={"on_long": "error"})
        return cls(probe=run.probe, task=run.task, teacher=load_teacher(config, depth=deepest))

    def predict_proba(self, examples: Sequence[Example], *, progress: Progress | None = None) -> list[np.ndarray]:
        """Calibrated distribution over each row's options, (k_i,), in the order of ``examples``.

        Their states go to the states cache, so that rows which are asked for again are not read again.

        Args:
            examples: Rows with ids of their own; their answers are not looked at.
            progress: Told of the tokens read.

        Raises:
            DataError: a row longer than the teacher's context.
            StoreError: the teacher's weights are not those that the probe was fitted to.
        """
        return self._read(examples, None, progress or Silent())

    def predict_once(self, examples: Sequence[Example]) -> list[np.ndarray]:
        """As ``predict_proba``, and leave nothing behind on the disk."""
        # The space of a cache of its own is given back, and what it has measured of the teacher is kept.
        answers = self._read(examples, Path(self._scratch.name), Silent())
        shutil.rmtree(Path(self._scratch.name) / "states", ignore_errors=True)
        return answers

    def _read(self, examples: Sequence[Example], cache: Path | None, progress: Progress) -> list[np.ndarray]:
        if not examples:
            return []
        shown = self.task.prompt.shots_from
        worked = {shown: self.task.splits[shown]} if shown in self.task.splits else {}
        task = replace(self.task, splits={**worked, ROWS: tuple(examples)})
        states = States(())
        for what in passes(self.probe, task):
            states += extract(self.teacher, task, splits=(ROWS,), cache=cache, progress=progress, **what)
        return [softmax(row) for row in self.probe.logits(states, [e.id for e in examples])]


def open_run(directory: Path) -> Run:
    """The run in a directory, whose probe is fitted.

    Raises:
        StoreError: it is not a run directory, or its probe stage is not done.
    """
    if not (directory / "config.yaml").is_file() or not (directory / "run.json").is_file():
        raise StoreError(f"{directory}: not a run directory, it has no config.yaml and run.json; name one under runs/")
    config = load_config(directory / "config.yaml", [f"runs_dir={directory.parent}", f"name={directory.name}"])
    run = Run(RunDirectory(directory), config, Silent())
    if run.directory.key_of("probe") is None:
        raise StoreError(f"{directory}: its probe is not fitted yet; run  probekd probe {directory}  first")
    return run
