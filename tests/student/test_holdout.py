from __future__ import annotations

from dataclasses import replace

import pytest

from probekd.config import StudentConfig
from probekd.errors import DataError
from probekd.student.holdout import choose_watched
from probekd.tasks.base import Example, Task
from probekd.tasks.variants import variant_keys

CONFIG = StudentConfig(model="m")
NEVER = StudentConfig(model="m", early_stopping=None)


@pytest.fixture
def task() -> Task:
    labels = ("a", "b")
    rows = tuple(
        Example(
            id=f"{n}{v}", question=f"tell me what the {n} word number {n * 37} {v} is", options=labels, answer=n % 2
        )
        for n in range(25)
        for v in ("once", "twice")
    )
    return Task(name="t", kind="classification", splits={"train": rows}, labels=labels)


def test_labelled_validation_rows_watch_and_no_training_row_is_lost(task: Task) -> None:
    rows = task.rows("train")
    validation = (replace(rows[0], id="v"), replace(rows[1], id="w", answer=None))
    other = replace(task, splits={"train": rows, "validation": validation})
    for config in (CONFIG, NEVER):
        found = choose_watched(other, rows, config, seed=0)
        assert (found.rows, [e.id for e in found.examples], list(found.rest)) == ("validation", ["v"], rows)


def test_a_fold_is_held_out_stratified_and_with_all_variants(task: Task) -> None:
    rows = task.rows("train")
    found = choose_watched(task, rows, CONFIG, seed=0)
    assert found.rows == "held out"
    assert len(found.examples) == 10 and len(found.rest) == 40
    assert {*found.examples, *found.rest} == {*rows}
    assert sum(e.answer == 0 for e in found.examples) in (4, 6)
    keys = dict(zip((e.id for e in rows), variant_keys(rows), strict=True))
    assert not {keys[e.id] for e in found.examples} & {keys[e.id] for e in found.rest}


def test_the_fold_depends_on_the_rows_and_the_seed_alone(task: Task) -> None:
    rows = task.rows("train")
    held = {e.id for e in choose_watched(task, rows, CONFIG, seed=0).examples}
    assert {e.id for e in choose_watched(task, rows[::-1], CONFIG, seed=0).examples} == held
    assert {e.id for e in choose_watched(task, rows, CONFIG, seed=1).examples} != held


def test_without_early_stopping_nothing_is_held_out(task: Task) -> None:
    found = choose_watched(task, task.rows("train"), NEVER, seed=0)
    assert (found.rows, found.examples, len(found.rest)) == (None, (), 50)


def test_too_few_rows_say_how_to_train_all_the_same(task: Task) -> None:
    with pytest.raises(DataError, match=r"no validation split, .* 4 labelled rows .* student\.early_stopping to null"):
        choose_watched(task, task.rows("train")[:4], CONFIG, seed=0)
