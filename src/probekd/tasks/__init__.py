"""Tasks: rows to learn from and to report on, from built-in benchmarks or a user's own files."""

from probekd.tasks.base import Example, Kind, Task, check_task
from probekd.tasks.benchmark import Builtin
from probekd.tasks.load import BUILTIN, load_task, load_task_from_config, task_names

__all__ = [
    "BUILTIN",
    "Builtin",
    "Example",
    "Kind",
    "Task",
    "check_task",
    "load_task",
    "load_task_from_config",
    "task_names",
]
