"""What the students of a run start from."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from probekd.config import Method
from probekd.student.cutting import cut_student

if TYPE_CHECKING:
    from probekd.stages import Run


@contextmanager
def start_of(run: Run, method: Method) -> Iterator[str | Path]:
    """What a student starts from; the blocks of a ``cut`` one lie in the run directory for as long as it trains.

    Only what learns from the probe starts with the probe as its head.
    """
    config = run.config
    if config.student.kind != "cut":
        yield config.student.model
        return
    # Of a run that was killed here, the next one replaces what is left.
    place = run.path / ".parts" / f"{method}-start"
    try:
        yield cut_student(
            config.student.model,
            run.probe,
            run.stored("extract"),
            run.task,
            place / f"{Path(config.student.model).name}-cut",
            config=config.student,
            probe_config=config.probe,
            head="probe" if method == "probe-kd" else "fresh",
            seed=config.seed,
        )
    finally:
        shutil.rmtree(place, ignore_errors=True)
