"""What the students of a run start from."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from probekd.config import RunConfig, StudentConfig
from probekd.probes.probe import Probe
from probekd.states import States
from probekd.student.cutting import cut_student, single_reader
from probekd.student.kinds import kind_named
from probekd.tasks.base import Task


def reads_options(config: StudentConfig, task: Task, probe: Probe) -> bool:
    """Whether the students read each option of a row by a state of its own; else the row has one.

    Args:
        config: The students'.
        task: Kind and prompt.
        probe: Fitted on the labelled rows; a ``cut`` student reads as it does.
    """
    if config.kind == "cut":
        return single_reader(probe, task, config.depth).position != "answer"
    return kind_named(config.kind).prepare(config.model, task, config).reads_options


@contextmanager
def start_of(
    config: RunConfig,
    method: str,
    task: Task,
    place: Path,
    read: Callable[[], tuple[Probe, States]],
) -> Iterator[str | Path]:
    """The checkpoint that a student starts from; the blocks of a ``cut`` one are there for as long as it trains.

    Only what learns from the probe starts with the probe as its head.

    Args:
        config: The run's.
        method: What the student learns from.
        task: The rows.
        place: A directory for the blocks; what a killed run left there is replaced.
        read: Gives the fitted probe and the labelled rows' states; asked only for a ``cut`` student.
    """
    model = config.student.model
    if config.student.kind != "cut":
        yield model
        return
    try:
        yield cut_student(
            model,
            *read(),
            task,
            place / f"{Path(model).name}-cut",
            config=config.student,
            probe_config=config.probe,
            head="probe" if method == "probe-kd" else "fresh",
            seed=config.seed,
        )
    finally:
        shutil.rmtree(place, ignore_errors=True)
