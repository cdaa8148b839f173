"""The teacher's views: what the probe, its ablations and the output readouts say of labelled rows and pool."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from probekd.config import ProbeConfig
from probekd.methods.views import View, ViewName, widest
from probekd.probes.fit import fit_probes
from probekd.probes.outputs import Care, OutputReadout
from probekd.probes.probe import Probe
from probekd.states import States
from probekd.targets import labelled_logits
from probekd.tasks.base import Example, Task


@dataclass(frozen=True, kw_only=True)
class TeacherReading:
    """A teacher as it was read.

    Attributes:
        task: Labelled rows in ``train``, pool in ``unlabelled``.
        states: Of all these rows, wherever the probe and the readouts read.
        probe: Fitted on the labelled rows.
        outputs: The best output readout of each care that is asked for.
        config: What the probe was fitted with.
        seed: Shuffles the labels of the control.
    """

    task: Task
    states: States
    probe: Probe
    outputs: Mapping[Care, OutputReadout]
    config: ProbeConfig
    seed: int

    @property
    def labelled(self) -> tuple[Example, ...]:
        """Labelled rows in the probe's order, which is that of the views."""
        by_id = {e.id: e for e in self.task.rows("train")}
        return tuple(by_id[i] for i in self.probe.ids)

    @property
    def pool(self) -> tuple[Example, ...]:
        """Unlabelled rows."""
        return tuple(self.task.rows("unlabelled"))

    def view(self, name: ViewName) -> View:
        """One of the views in ``TEACHER_VIEWS``."""
        return TEACHER_VIEWS[name](self)


def _view(reading: TeacherReading, honest: Sequence[np.ndarray], source: Probe | OutputReadout) -> View:
    ids = [e.id for e in reading.pool]
    said = source.logits(reading.states, ids) if ids else []
    return View.of(honest, said, widest((*reading.labelled, *reading.pool)))


def _probe(reading: TeacherReading) -> View:
    return _view(reading, _honest(reading.probe), reading.probe)


def _honest(source: Probe | OutputReadout) -> list[np.ndarray]:
    return labelled_logits(source.honest, source.answers, source.folds)


def _probe_in_sample(reading: TeacherReading) -> View:
    """What the probe says of its own training rows when asked as of any other: four of five fold models saw each."""
    own = reading.probe.logits(reading.states, reading.probe.ids)
    return _view(reading, own, reading.probe)


def _probe_shuffled(reading: TeacherReading) -> View:
    """The control: where the probe reads, a probe is fitted anew to shuffled labels."""
    reader = reading.probe.reader
    rows = reading.labelled
    answers = np.random.default_rng(reading.seed).permutation(reading.probe.answers)
    # A shuffled answer may lie beyond a shorter row's options.
    shuffled = tuple(replace(e, answer=int(a) % len(e.options)) for e, a in zip(rows, answers, strict=True))
    changes = {
        "positions": (reader.position,),
        "depths": (reader.depth,),
        "families": (reader.family,),
        "windows": (1,),
        "stack": False,
    }
    states = reading.states.holding(reader.layout, reading.probe.ids)
    task = replace(reading.task, splits={"train": shuffled})
    probe = fit_probes(states, task, config=reading.config.model_copy(update=changes), seed=reading.seed)
    place = {row_id: i for i, row_id in enumerate(probe.ids)}
    honest = _honest(probe)
    return _view(reading, [honest[place[i]] for i in reading.probe.ids], probe)


def _output(care: Care) -> Callable[[TeacherReading], View]:
    return lambda reading: _view(reading, _honest(reading.outputs[care]), reading.outputs[care])


TEACHER_VIEWS: Mapping[ViewName, Callable[[TeacherReading], View]] = {
    "probe": _probe,
    "probe_in_sample": _probe_in_sample,
    "probe_shuffled": _probe_shuffled,
    "output_raw": _output("raw"),
    "output_debiased": _output("debiased"),
    "output_calibrated": _output("calibrated"),
}
