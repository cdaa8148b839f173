"""What a run looks at before it reads its teacher: all of its students that configs show, the checkpoint's among them."""

from __future__ import annotations

from probekd.config import ProbeConfig, StudentConfig
from probekd.methods.hidden import check_place
from probekd.student.cutting import check_reader
from probekd.student.fit import check_steps
from probekd.student.kinds import kind_named
from probekd.tasks.base import Task
from probekd.teacher.load import quiet_transformers


def check_student(config: StudentConfig, task: Task, probe: ProbeConfig, *, matching: bool) -> None:
    """Raise what would else be raised when students are trained, by the same code where it can be.

    Args:
        config: The students'; ``model`` is a checkpoint.
        task: Kind, labels, prompt and worked examples.
        probe: What will be tried.
        matching: Whether a student learns to match the teacher's states.

    Raises:
        ConfigError: options that the students cannot follow.
        ModelError: an architecture that the kind of student cannot use, or a checkpoint without a tokenizer.
    """
    if config.kind != "static":  # which takes no steps
        check_steps(config)
    with quiet_transformers():
        ready = kind_named(config.kind).prepare(config.model, task, config)
    if config.kind == "cut":  # which reads what the probe will choose to read, and so what can be matched
        check_reader(task, probe, config)
    elif matching:
        check_place(task, probe, options=ready.reads_options)
