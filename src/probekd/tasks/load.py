"""From a name to a task that is ready for use: read, check, mind overlaps, draw the label budget."""

from __future__ import annotations

import difflib
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Literal

from probekd.config import PromptConfig, TaskConfig
from probekd.errors import ConfigError
from probekd.tasks.aqua import AQUA_RAT
from probekd.tasks.arc import ARC_CHALLENGE, ARC_EASY
from probekd.tasks.banking77 import BANKING77
from probekd.tasks.base import Task, check_task
from probekd.tasks.benchmark import Builtin, drop_equal_options
from probekd.tasks.files import read_task_file
from probekd.tasks.mmlu import MMLU
from probekd.tasks.overlap import Policy, apply_overlap_policy
from probekd.tasks.rows import nearest
from probekd.tasks.wordnet import WORDNET_KINDS, WORDNET_WHICH

BUILTIN: Mapping[str, Builtin] = {
    builtin.name: builtin
    for builtin in (WORDNET_KINDS, WORDNET_WHICH, ARC_EASY, ARC_CHALLENGE, MMLU, AQUA_RAT, BANKING77)
}


def task_names() -> tuple[str, ...]:
    """Names of the built-in tasks."""
    return tuple(BUILTIN)


def load_task(
    name: str | Path,
    *,
    data_dir: Path | str | None = None,
    subjects: Sequence[str] | None = None,
    labels: int | None = None,
    pool: int | Literal["all"] = "all",
    limit: Mapping[str, int] | None = None,
    on_overlap: Policy = "drop",
    seed: int = 0,
) -> Task:
    """Read a task, check it, apply the overlap policy, and draw the label budget (see ``Task.budget``).

    Args:
        name: A built-in task, or the path of a task file (.yaml, .yml).
        data_dir: Directory of the built-in benchmarks' files; None = the variable PROBEKD_DATA, else the Hub.
        subjects: Keep the rows of these subjects; None = all.
        labels: Training rows whose answer is used; None = all.
        pool: Unlabelled rows; "all" = all that there are.
        limit: At most this many rows of a split.
        on_overlap: What to do with train and unlabelled rows that recur in validation or test.
        seed: Of the subsets.

    Raises:
        ConfigError: unknown name or subject, or a task file that cannot be used.
        DataError: rows that cannot be used, or fewer than asked for.
    """
    task = _read(name, Path(data_dir) if data_dir is not None else None)
    if subjects is not None:
        task = keep_subjects(task, subjects)
    if str(name) in BUILTIN:
        task = drop_equal_options(task)
    check_task(task)
    task = apply_overlap_policy(task, on_overlap)
    return task.budget(labels=labels, pool=pool, limit=limit, seed=seed)


def load_task_from_config(config: TaskConfig, *, prompt: PromptConfig | None, seed: int) -> Task:
    """``load_task`` of a run's config; ``prompt`` changes the task's own where it says something.

    A key at its default says nothing, so ``shots: 5`` keeps a benchmark's instruction.
    """
    task = load_task(
        config.name,
        data_dir=config.data_dir,
        subjects=config.subjects,
        labels=config.labels,
        pool=config.pool,
        limit=config.limit,
        on_overlap=config.on_overlap,
        seed=seed,
    )
    changes = {} if prompt is None else {key: getattr(prompt, key) for key in prompt.model_dump(exclude_defaults=True)}
    return replace(task, prompt=task.prompt.model_copy(update=changes))


def keep_subjects(task: Task, subjects: Sequence[str]) -> Task:
    """The rows of these subjects; raises ConfigError for a subject that no row has."""
    known = sorted({e.subject for e in task.rows(*task.splits) if e.subject})
    if not known:
        raise ConfigError(f"task {task.name}: its rows have no subjects; remove task.subjects")
    for subject in subjects:
        if subject not in known:
            raise ConfigError(f"task {task.name}: no subject {subject!r}; {nearest(subject, known)}")
    kept = {split: tuple(e for e in rows if e.subject in subjects) for split, rows in task.splits.items()}
    return replace(task, splits={split: rows for split, rows in kept.items() if rows})


def _read(name: str | Path, data_dir: Path | None) -> Task:
    if str(name) in BUILTIN:
        return BUILTIN[str(name)].read(data_dir)
    path = Path(name)
    if path.suffix in (".yaml", ".yml"):
        return read_task_file(path)
    close = difflib.get_close_matches(path.name, BUILTIN, n=1, cutoff=0.4)
    hint = f"did you mean {close[0]!r}" if close else f"is it one of {', '.join(BUILTIN)}"
    raise ConfigError(f"no built-in task {str(name)!r}; {hint}? The path of a task file (.yaml) works too")
