"""probekd: distil what a frozen language model knows, read from its hidden states, into a small fast model.

>>> task = load_task("arc_easy", labels=200, pool=1000)
>>> states = extract("path/to/teacher", task)
>>> probe = fit_probes(states, task)
>>> targets = soft_labels(probe, states)
>>> student = distill("path/to/student", task, targets)
>>> evaluate(student, task)
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from probekd.config import RunConfig as RunConfig
    from probekd.config import load_config as load_config
    from probekd.errors import ProbeKDError as ProbeKDError
    from probekd.evaluation.predictions import evaluate as evaluate
    from probekd.extraction import extract as extract
    from probekd.probes.fit import fit_probes as fit_probes
    from probekd.probes.fit import soft_labels as soft_labels
    from probekd.student import Student as Student
    from probekd.student import distill as distill
    from probekd.tasks import Task as Task
    from probekd.tasks import load_task as load_task
    from probekd.teacher.load import load_teacher as load_teacher

_HOME = {
    "ProbeKDError": "errors",
    "RunConfig": "config",
    "Student": "student",
    "Task": "tasks",
    "distill": "student",
    "evaluate": "evaluation.predictions",
    "extract": "extraction",
    "fit_probes": "probes.fit",
    "load_config": "config",
    "load_task": "tasks",
    "load_teacher": "teacher.load",
    "soft_labels": "probes.fit",
}
__all__ = sorted(_HOME)
__version__ = "0.1.0"


def __getattr__(name: str) -> Any:
    # Torch and Transformers take seconds to import, so a name brings its room only when it is used.
    if name not in _HOME:
        raise AttributeError(f"module 'probekd' has no attribute {name!r}")
    value = getattr(import_module(f"probekd.{_HOME[name]}"), name)
    globals()[name] = value
    return value
