import json
import os
from dataclasses import replace
from pathlib import Path

import pytest

from probekd.errors import DataError
from probekd.tasks import load_task
from probekd.tasks.base import Example, Task
from probekd.tasks.benchmark import DATA_VARIABLE
from probekd.tasks.overlap import Policy, apply_overlap_policy

DATA = os.environ.get(DATA_VARIABLE)


def row(name: str, question: str, answer: int | None = 0, options: tuple[str, ...] = ("yes", "no")) -> Example:
    return Example(id=name, question=question, options=options, answer=answer)


def task(**splits: list[Example]) -> Task:
    rows = {split: tuple(examples) for split, examples in splits.items()}
    return Task(name="t", kind="multiple_choice", splits=rows, notes=("earlier",))


OVERLAPPING = task(
    train=[row("a", "Is  ice COLD?"), row("b", "Is fire cold?"), row("c", "Is lead light?")],
    unlabelled=[row("d", "is fire cold?", None), row("e", "Is air heavy?", None)],
    validation=[row("f", "Is ice cold?"), row("g", "Is snow warm?")],
    test=[row("h", "Is fire\ncold?"), row("i", "Is snow warm?")],
    dev=[row("j", "Is snow WARM?"), row("k", "Is tea hot?")],
)
LATER = (
    "1 validation row recurs in test: kept (g)",
    "1 dev row recurs in test: kept (j)",
)


def test_drop_leaves_out_train_and_pool_rows_only() -> None:
    result = apply_overlap_policy(OVERLAPPING, "drop")
    assert [e.id for e in result.rows(*result.splits)] == ["c", "e", "f", "g", "h", "i", "j", "k"]
    assert result.notes == (
        "earlier",
        "2 train rows recur in validation or test: left out (a, b)",
        "1 unlabelled row recurs in validation or test: left out (d)",
        *LATER,
    )


def test_keep_keeps_them_and_says_so() -> None:
    result = apply_overlap_policy(OVERLAPPING, "keep")
    assert result.splits == OVERLAPPING.splits
    assert result.notes == (
        "earlier",
        "2 train rows recur in validation or test: kept (a, b)",
        "1 unlabelled row recurs in validation or test: kept (d)",
        *LATER,
    )


def test_error_names_them() -> None:
    with pytest.raises(DataError, match=r"2 train rows recur in validation or test \(a, b\); 1 unlabelled .* \(d\)"):
        apply_overlap_policy(OVERLAPPING, "error")


@pytest.mark.parametrize("policy", ["drop", "keep", "error"])
def test_a_clean_task_is_unchanged(policy: Policy) -> None:
    clean = task(train=[row("a", "one")], test=[row("b", "two")])
    assert apply_overlap_policy(clean, policy) == clean


def test_at_most_five_ids_are_named() -> None:
    many = [row(f"t{i}", f"question {i}") for i in range(7)]
    doubled = task(train=[*many, row("own", "another")], test=[replace(e, id=f"copy{e.id}") for e in many])
    assert apply_overlap_policy(doubled).notes[1:] == (
        "7 train rows recur in validation or test: left out (t0, t1, t2, t3, t4, ...)",
    )


def test_nothing_left_to_learn_from() -> None:
    with pytest.raises(DataError, match="every labelled training row recurs"):
        apply_overlap_policy(task(train=[row("a", "one"), row("b", "two", None)], test=[row("c", "One")]))


def test_a_set_phrase_is_a_duplicate_only_with_the_same_options() -> None:
    phrase = "Which of these is true?"
    train = [row(f"t{i}", phrase, 0, (f"claim {i}", "none")) for i in range(6)]
    result = apply_overlap_policy(task(train=train, test=[row("x", phrase, 0, ("NONE", "claim 3"))]))
    assert [e.id for e in result.rows("train")] == ["t0", "t1", "t2", "t4", "t5"]


def test_contradicting_training_rows_are_noted() -> None:
    train = [
        row("a", "Is ice cold?", 0),
        row("b", "is ice cold?", 1),
        row("c", "Is fire cold?", 0),
        row("d", "Is fire cold?", 1, ("no", "yes")),  # the same answer at another place
        row("e", "Is tea hot?", 0),
        row("f", "Is tea hot?", 1, ("never", "always")),  # other options: not the same question
    ]
    result = apply_overlap_policy(task(train=train, test=[row("x", "else")]))
    assert result.notes[1:] == ("2 train rows ask what another asks but differ in the answer: kept (a, b)",)
    assert len(result.rows("train")) == 6


@pytest.mark.skipif(not DATA, reason=f"{DATA_VARIABLE} does not name the benchmarks' directory")
@pytest.mark.parametrize("name", ["arc_easy", "arc_challenge", "banking77"])
def test_published_overlaps_are_dropped(name: str) -> None:
    assert DATA
    expected = json.loads((Path(DATA) / "overlaps.json").read_text())[f"{name}/train"]
    kept, dropped = load_task(name, on_overlap="keep"), load_task(name)
    gone = {e.id for e in kept.rows("train")} - {e.id for e in dropped.rows("train")}
    assert gone == set(expected)
