from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import replace

import pytest
import readers

from probekd.config import TaskConfig
from probekd.errors import DataError
from probekd.study import universe as module
from probekd.study.config import StudyConfig, StudyTask, load_study
from probekd.study.universe import load_universe
from probekd.tasks.base import Example, Task, nested_order
from probekd.tasks.variants import variant_keys

Build = Callable[..., StudyConfig]


def task(train: int, validation: int = 0, unlabelled: int = 0, test: int = 6) -> Task:
    sizes = {"train": train, "validation": validation, "unlabelled": unlabelled, "test": test}
    splits = {
        split: tuple(
            Example(
                id=f"{split}{i}",
                question=f"{split} {i}?",
                options=("a", "b", "c"),
                answer=None if split == "unlabelled" else i % 3,
            )
            for i in range(n)
        )
        for split, n in sizes.items()
        if n
    }
    return Task(name="t", kind="classification", splits=splits, labels=("a", "b", "c"))


@pytest.fixture
def cut(tiny_study: Build, monkeypatch: pytest.MonkeyPatch) -> Callable[..., module.Universe]:
    """The universe of a made-up task, 40 rows at most and 10 of them validation."""

    def make(whole: Task, **entry: int) -> module.Universe:
        monkeypatch.setattr(module, "load_task_from_config", lambda config, **_: whole)
        return load_universe(StudyTask(name="t", **entry), tiny_study(test=5))  # type: ignore[arg-type]

    return make


def test_a_validation_split_chooses_and_the_universe_is_the_first_rows_by_hash(
    cut: Callable[..., module.Universe],
) -> None:
    whole = task(60, validation=20)
    universe = cut(whole)
    assert [e.id for e in universe.task.rows("train")] == [e.id for e in nested_order(whole.rows("train"), 0)[:40]]
    assert len(universe.validation) == 10 and all(e.id.startswith("validation") for e in universe.validation)
    assert len(universe.task.rows("test")) == 5 and "validation" not in universe.task.splits
    assert [len(universe.chooses(n, 10)) for n in (4, 12)] == [4, 10]
    assert universe.chooses(4, 10) == universe.chooses(12, 10)[:4]
    assert cut(whole, test=3).task.rows("test") == universe.task.rows("test")[:3]


def test_without_one_training_rows_are_set_aside(cut: Callable[..., module.Universe]) -> None:
    for train, kept in ((60, 40), (45, 35)):
        universe = cut(task(train))
        rows, chosen = ({e.id for e in some} for some in (universe.task.rows("train"), universe.validation))
        assert (len(rows), len(chosen)) == (kept, 10) and not rows & chosen
    with pytest.raises(DataError, match="too few training rows to set 10 aside"):
        cut(task(9))
    with pytest.raises(DataError, match="needs a test split"):
        cut(replace(task(60), splits={"train": task(60).splits["train"]}))


@pytest.mark.parametrize("train", [60, 200])
def test_no_row_that_chooses_is_a_variant_of_one_that_is_learnt_from(
    cut: Callable[..., module.Universe], train: int
) -> None:
    def asked(e: Example, number: int) -> Example:
        words = ("my", "the", "his")[number % 3]
        return replace(e, question=f"{words} number {number // 3} of all the many things is what kind of thing?")

    whole = task(train, unlabelled=30)
    splits = {split: tuple(asked(e, n) for n, e in enumerate(rows)) for split, rows in whole.splits.items()}
    universe = cut(replace(whole, splits={**splits, "test": whole.splits["test"]}))
    rows = universe.task.rows("train", "unlabelled")
    keys = variant_keys([*rows, *universe.validation])
    assert len(set(keys)) < len(keys)  # there are variants, but on one side
    assert not set(keys[: len(rows)]) & set(keys[len(rows) :])
    assert len(universe.validation) == 10 and 30 <= len(universe.task.rows("train")) <= 40


def test_unlabelled_rows_fill_what_is_left(cut: Callable[..., module.Universe]) -> None:
    universe = cut(task(30, validation=10, unlabelled=50))
    assert len(universe.task.rows("unlabelled")) == 10 and universe.pool_rows(12) == 28
    drawn = universe.drawn(12, seed=1)
    assert len(drawn.rows("train")) == 12 and len(drawn.rows("unlabelled")) == 28
    assert {e.id for e in drawn.rows("train")} < {e.id for e in universe.drawn(24, seed=1).rows("train")}
    assert all(universe.answers[e.id] is not None for e in drawn.rows("unlabelled") if e.id.startswith("train"))


@pytest.mark.skipif("PROBEKD_DATA" not in os.environ, reason="the benchmarks' files are not here")
@pytest.mark.parametrize(
    "name", ["arc_easy", "arc_challenge", "aqua_rat", "banking77", "wordnet_kinds", "wordnet_which"]
)
def test_the_breadth_study_shares_the_states_of_the_readers_study(name: str) -> None:
    study = load_study(readers.ROOT / "studies" / "breadth.yaml")
    ours = load_universe(next(t for t in study.tasks if t.label == name), study).task
    theirs = readers.study_task(name)
    for split in ("train", "test"):
        assert {e.id for e in ours.rows(split)} == {e.id for e in theirs.rows(split)}
    assert TaskConfig(name=name).on_overlap == "drop" and ours.prompt == theirs.prompt
