from __future__ import annotations

import random
from collections import Counter
from dataclasses import replace

import numpy as np
import pytest
from tiny import choice_row

from probekd.errors import DataError
from probekd.probes.folds import assign_folds
from probekd.tasks.base import Example

LABELS = ("a", "b", "c")


def texts(counts: tuple[int, ...]) -> list[Example]:
    return [
        Example(id=f"{LABELS[c]}{i}", question=f"text {i} of {LABELS[c]}", options=LABELS, answer=c)
        for c, count in enumerate(counts)
        for i in range(count)
    ]


def questions(number: int) -> list[Example]:
    return [choice_row(f"q{i}", f"Question {i}?", f"x{i}", f"y{i}", "z", answer=i % 3) for i in range(number)]


def by_id(examples: list[Example], folds: int = 5, seed: int = 0, kind: str = "classification") -> dict[str, int]:
    result = assign_folds(examples, kind, folds=folds, seed=seed)
    return dict(zip((e.id for e in examples), result.tolist(), strict=True))


@pytest.mark.parametrize("counts", [(50, 25, 10), (7, 7, 7), (90, 2, 2)])
def test_folds_are_stratified_and_of_one_size(counts: tuple[int, ...]) -> None:
    examples = texts(counts)
    folds = assign_folds(examples, "classification", folds=5, seed=0)
    sizes = np.bincount(folds, minlength=5)
    assert sizes.max() - sizes.min() <= 1
    for c in range(3):
        share = np.bincount(folds[[e.answer == c for e in examples]], minlength=5)
        assert share.max() - share.min() <= 1


def test_row_order_plays_no_part() -> None:
    examples = texts((20, 13, 9))
    shuffled = random.Random(1).sample(examples, len(examples))
    assert by_id(shuffled) == by_id(examples)


def test_the_seed_does() -> None:
    assert by_id(texts((20, 20, 20)), seed=1) != by_id(texts((20, 20, 20)), seed=0)


def test_rows_that_ask_the_same_share_a_fold() -> None:
    examples = questions(30)
    twins = [
        replace(
            e,
            id=f"{e.id}-twin",
            question=f"  {e.question.upper()} ",
            options=e.options[::-1],
            answer=2 - (e.answer or 0),
        )
        for e in examples[:12]
    ]
    folds = by_id([*examples, *twins], kind="multiple_choice")
    assert all(folds[t.id] == folds[t.id.removesuffix("-twin")] for t in twins)
    assert folds == by_id([*twins, *examples][::-1], kind="multiple_choice")
    assert len(Counter(folds.values())) == 5


def test_a_set_phrase_is_no_duplicate() -> None:
    examples = [choice_row(f"q{i}", "Which is true?", f"x{i}", f"y{i}", answer=i % 2) for i in range(20)]
    assert set(by_id(examples, kind="multiple_choice").values()) == set(range(5))


def test_too_few_rows() -> None:
    with pytest.raises(DataError, match="9 labelled rows are too few for 5 folds"):
        by_id(texts((3, 3, 3)))
    assert set(by_id(texts((4, 3, 3))).values()) == set(range(5))


@pytest.mark.parametrize(("counts", "label", "found"), [((20, 1, 9), "b", 1), ((20, 5, 0), "c", 0)])
def test_a_class_with_too_few_rows(counts: tuple[int, ...], label: str, found: int) -> None:
    with pytest.raises(DataError, match=rf"the label '{label}' has {found} labelled row\(s\)"):
        by_id(texts(counts))


def test_too_few_different_questions() -> None:
    examples = [replace(e, question=f"text {i % 4}", answer=i % 3) for i, e in enumerate(texts((4, 4, 4)))]
    with pytest.raises(
        DataError, match=r"12 labelled rows ask only 4 different questions \(variants count once\), too few for 5 folds"
    ):
        by_id(examples)


def test_repeats_deal_anew_and_duplicates_stay_together_in_each() -> None:
    examples = questions(30)
    twins = [replace(e, id=f"{e.id}-twin") for e in examples[:12]]
    dealt = []
    for repeat in range(4):
        every = [*examples, *twins]
        folds = assign_folds(every, "multiple_choice", folds=5, seed=0, repeat=repeat)
        by = dict(zip((e.id for e in every), folds.tolist(), strict=True))
        assert all(by[t.id] == by[t.id.removesuffix("-twin")] for t in twins)
        assert np.bincount(folds, minlength=5).min() > 0
        dealt.append(tuple(folds))
    assert len(set(dealt)) == 4


def test_variants_of_a_question_share_a_fold() -> None:
    first = "a train {} metres in length crosses a telegraph post in sixteen seconds what is the speed of it"
    second = "the ages of {} children in a class are added up and halved how old is the teacher of this class"
    variants = [
        choice_row(f"v{i}", (first, second)[i % 2].format(40 + i), f"x{i}", f"y{i}", answer=i % 2) for i in range(12)
    ]
    others = questions(30)
    folds = by_id([*variants, *others], folds=3, kind="multiple_choice")
    for which in (0, 1):
        assert len({folds[f"v{i}"] for i in range(which, 12, 2)}) == 1
    assert len({folds[e.id] for e in others}) == 3
