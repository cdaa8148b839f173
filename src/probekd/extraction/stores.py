"""extract: what is read of a task, and the stores that it comes to lie in."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

from probekd.config import Layout, Position, TeacherConfig
from probekd.errors import DataError
from probekd.extraction.job import Job
from probekd.extraction.survey import default_positions, survey_task
from probekd.files import cache_dir
from probekd.progress import Progress, Silent, working
from probekd.states import States, StateStore
from probekd.tasks.base import Task
from probekd.teacher.load import Teacher, load_teacher


def extract(
    teacher: Teacher | TeacherConfig | str | Path,
    task: Task,
    *,
    splits: Sequence[str] = (),
    layouts: Sequence[Layout] | None = None,
    positions: Sequence[Position] | None = None,
    depths: Sequence[int] | None = None,
    outputs: bool = True,
    cache: Path | None = None,
    progress: Progress | None = None,
    claim: Callable[[StateStore], StateStore] | None = None,
) -> States:
    """Read the teacher's states for a task's rows, from the cache where they are there already.

    Several processes may ask for the same states at the same time: one reads, the others wait and use what it read.

    Args:
        teacher: A loaded teacher, its config, or the name of a model.
        task: The rows.
        splits: Splits to read; none named = all but ``dev``.
        layouts: Prompt layouts; None = those of the task's prompt.
        positions: Positions to keep; None = every one that the layout has for this kind of task.
        depths: Depths to keep; None = 0..L.
        outputs: Record what the teacher says too (label logits, likelihood of options). Without, the pass ends at the
            deepest depth that is kept, and the blocks above it are not even loaded.
        cache: Directory of the states cache; None = the variable PROBEKD_CACHE, else ~/.cache/probekd.
        progress: Told tokens as they are done.
        claim: Given each store as soon as it is there, hours before the last perhaps; what it returns is used. A run
            directory links its stores so, which ``cache gc`` then leaves alone.

    Raises:
        DataError, ModelError, StoreError: see the parts; what was finished stays, and the next call goes on from there.
    """
    if not isinstance(teacher, Teacher):
        deepest = max(depths) if depths and not outputs else None
        teacher = load_teacher(teacher, depth=deepest)
    progress = progress or Silent()
    kept_depths = tuple(sorted(set(depths))) if depths is not None else tuple(range(teacher.depths + 1))
    outside = [depth for depth in kept_depths if not 0 <= depth <= teacher.depths]
    if outside:
        raise DataError(
            f"depth {outside[0]} asked for, but {teacher.name} has {teacher.depths} blocks (depths 0 to {teacher.depths})"
        )
    if not teacher.whole and (outputs or kept_depths[-1] > len(teacher.blocks)):
        raise DataError(
            f"{teacher.name} was loaded up to depth {len(teacher.blocks)} alone: read no deeper, and without outputs"
        )
    task, surveys = survey_task(teacher, task, splits=splits, layouts=layouts)
    jobs = []
    for survey in surveys:
        kept = tuple(p for p in default_positions(task, survey.layout) if positions is None or p in positions)
        if kept:
            jobs.append(
                Job.plan(
                    teacher, survey, kept, kept_depths, outputs=outputs, task=task.name, cache=cache or cache_dir()
                )
            )
    if not jobs:
        raise DataError(
            f"task {task.name}: nothing to extract: no rows, or none of the positions {list(positions or ())} in these layouts"
        )
    claim = claim or (lambda store: store)
    stores: dict[int, StateStore] = {}
    with working(progress, "reading the teacher", sum(j.tokens for j in jobs), "tokens"):
        pending = [number for number, job in enumerate(jobs) if not job.finished]
        for number in sorted(set(range(len(jobs))) - set(pending)):
            stores[number] = claim(jobs[number].use())
            progress.advance(jobs[number].tokens)
        if pending:
            jobs[pending[0]].check()
        for number in pending:
            jobs[number].run(progress)
            stores[number] = claim(jobs[number].use())
    return States(tuple(stores[number] for number in range(len(jobs))))
