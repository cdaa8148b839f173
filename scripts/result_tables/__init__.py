"""Result files as tables of the README and the docs."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from result_tables import probes, runs, students, studies, teacher

# The results that are not those of a run; ``NAME.PART`` shows another part of a file.
TABLES: Mapping[str, Callable[[dict[str, Any]], str]] = {
    "readers": probes.readers_table,
    "readers.families": probes.families_table,
    "shift": probes.shift_table,
    "ideas": probes.ideas_table,
    "calibration": probes.calibration_table,
    "simulations": probes.simulations_table,
    "probes": probes.benchmark_table,
    "scale": teacher.pass_scale_table,
    "whole_task": teacher.whole_task_table,
    "large_teacher": teacher.large_teacher_table,
    "teacher_pass": teacher.pass_table,
    "latency": students.latency_table,
    "student": students.training_table,
    "student.whole": students.whole_table,
}
# Parts of a study's results, whatever its name.
STUDIES: Mapping[str, Callable[[dict[str, Any]], str]] = {
    "means": studies.means_table,
    "differences": studies.differences_table,
    "losses": studies.losses_table,
    "shares": studies.shares_table,
    "gate": studies.gate_table,
    "verdicts": studies.verdicts_table,
}


def table(name: str, result: dict[str, Any]) -> str:
    """The block called ``name`` of one result."""
    if name in TABLES:
        return TABLES[name](result)
    part = name.partition(".")[2]
    return STUDIES[part](result) if part else runs.run_table(name, result)
