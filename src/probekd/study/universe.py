"""The rows of a task that take part in a study: what labels are drawn from, what chooses, and what is tested on."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property

from probekd.errors import DataError
from probekd.study.config import StudyConfig, StudyTask
from probekd.tasks import load_task_from_config
from probekd.tasks.base import Example, Task, content_hash, nested_order, task_content
from probekd.tasks.variants import variant_keys


@dataclass(frozen=True, kw_only=True)
class Universe:
    """A task cut to its study.

    Attributes:
        task: ``train``, all answered; ``unlabelled`` where the task has such rows; ``test``; ``dev``.
        validation: Labelled rows that choose hyper-parameters, in the order in which fewer of them are taken.
    """

    task: Task
    validation: tuple[Example, ...]

    @cached_property
    def content(self) -> str:
        """Digest of all that takes part."""
        return task_content(replace(self.task, splits={**self.task.splits, "validation": self.validation}))

    @cached_property
    def answers(self) -> Mapping[str, int]:
        """Gold index of every row that has one: the pool's, which no method sees, among them."""
        rows = (*self.task.rows("train", "test"), *self.validation)
        return {e.id: e.answer for e in rows if e.answer is not None}

    @property
    def labels(self) -> int:
        """The largest budget."""
        return len(self.task.rows("train"))

    def pool_rows(self, budget: int) -> int:
        """Rows that a draw of a budget leaves to the pool."""
        return self.labels - budget + len(self.task.rows("unlabelled"))

    def drawn(self, budget: int, seed: int) -> Task:
        """The labelled rows of a draw in ``train``, everything else in ``unlabelled``; nested over the budgets."""
        return self.task.budget(labels=budget, seed=seed)

    def chooses(self, budget: int, most: int) -> tuple[Example, ...]:
        """Validation rows for a budget: as many as there are labels, and at most ``most``."""
        return self.validation[: min(budget, most)]


def load_universe(task: StudyTask, study: StudyConfig) -> Universe:
    """Read a task and cut it.

    The labelled rows come first, by hash with seed 0; the task's own unlabelled rows fill what is left of ``study.rows``.

    Raises:
        DataError: a task without labelled test rows, or without enough rows to set some aside for validation.
    """
    whole = load_task_from_config(task.as_run(), prompt=task.prompt, seed=0)
    where = f"study task {task.label}"
    if not whole.rows("test") or any(e.answer is None for e in whole.rows("test")):
        raise DataError(f"{where}: a study needs a test split with answers")
    labelled = nested_order([e for e in whole.rows("train") if e.answer is not None], 0)
    validation = sorted(
        (e for e in whole.rows("validation") if e.answer is not None), key=lambda e: content_hash(0, e.id)
    )
    unlabelled = sorted(whole.rows("unlabelled"), key=lambda e: content_hash(0, e.id))
    if validation:
        labelled = labelled[: study.rows]
    else:
        labelled, unlabelled, validation = set_aside(labelled, unlabelled, rows=study.rows, wanted=study.search.rows)
    if not labelled:
        raise DataError(
            f"{where}: no validation split, and too few training rows to set {study.search.rows} aside (variants of a "
            "question stay together); lower search.rows"
        )
    unlabelled = unlabelled[: study.rows - len(labelled)]
    most = task.test or study.test
    test = whole.rows("test")
    if most is not None and len(test) > most:
        test = sorted(test, key=lambda e: content_hash(0, e.id))[:most]
    splits = {
        "train": tuple(labelled),
        "unlabelled": tuple(unlabelled),
        "test": tuple(test),
        "dev": whole.splits.get("dev", ()),
    }
    cut = replace(whole, splits={name: rows for name, rows in splits.items() if rows})
    return Universe(task=cut, validation=tuple(validation[: study.search.rows]))


def set_aside(
    labelled: Sequence[Example], unlabelled: Sequence[Example], *, rows: int, wanted: int
) -> tuple[list[Example], list[Example], list[Example]]:
    """Split off rows that choose, such that none of them is a variant of one that is learnt from.

    Rows that a model has seen reworded would choose what recalls best. So the first labelled rows are learnt from, with
    their variants, and as few of them as leave enough others aside.

    Args:
        labelled: In the order in which fewer of them are taken.
        unlabelled: Rows without an answer.
        rows: At most so many labelled rows are learnt from.
        wanted: So many are set aside, or no row is left to learn from.

    Returns:
        What is learnt from, what is unlabelled, and what is set aside, each in its order.
    """
    keys = variant_keys([*labelled, *unlabelled])
    mine, others = keys[: len(labelled)], keys[len(labelled) :]
    for kept in range(min(rows, len(labelled)), -1, -1):
        learnt = set(mine[:kept])
        aside = {key for key in mine if key not in learnt}
        if sum(key in aside for key in mine) >= wanted:
            break
    pairs = list(zip(labelled, mine, strict=True))
    return (
        [e for e, key in pairs if key in learnt][:rows],
        [e for e, key in zip(unlabelled, others, strict=True) if key not in aside],
        [e for e, key in pairs if key in aside],
    )
