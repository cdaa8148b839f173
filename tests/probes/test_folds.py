from __future__ import annotations

import random
from collections import Counter
from dataclasses import replace

import numpy as np
import pytest
from tiny import choice_row

from probekd.errors import DataError
from probekd.probes.folds import assign_folds, rare_notes
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


def test_the_only_row_of_a_class_is_held_out_by_no_fold() -> None:
    folds = by_id(texts((20, 1, 9)))
    assert folds.pop("b0") == -1
    assert sorted(np.bincount(list(folds.values()))) == [5, 6, 6, 6, 6]
    assert by_id(texts((20, 5, 0))) == by_id(texts((20, 5)))  # a class without a row changes nothing


def test_only_rows_are_told_from_others_whatever_the_order_seed_and_repeat() -> None:
    examples = [e for e in texts((20, 1, 9)) if e.answer != 2 or e.id == "c3"]
    for seed in range(3):
        shuffled = random.Random(seed).sample(examples, len(examples))
        assert by_id(shuffled, seed=seed) == by_id(examples, seed=seed)
        folds = assign_folds(shuffled, "classification", folds=5, seed=seed, repeat=seed)
        assert {e.id for e, f in zip(shuffled, folds, strict=True) if f < 0} == {"b0", "c3"}


def test_options_have_no_classes_to_be_the_only_row_of() -> None:
    examples = [replace(e, answer=0) for e in questions(12)]
    examples[3] = replace(examples[3], answer=2)
    assert min(by_id(examples, kind="multiple_choice").values()) == 0


def test_rows_of_a_class_that_all_ask_the_same_are_as_one() -> None:
    examples = texts((12, 1, 9))
    twin = replace(examples[12], id="twin", question=f" {examples[12].question.upper()}")
    folds = by_id([*examples, twin])
    assert folds["b0"] == folds["twin"] == -1
    assert min(f for i, f in folds.items() if i not in ("b0", "twin")) == 0


def test_no_row_of_fold_minus_one_asks_what_a_held_out_row_asks() -> None:
    examples = texts((12, 1, 9))
    # The only row of b asks what a row of a asks, so it goes where that one goes.
    examples[12] = replace(examples[12], question=examples[3].question)
    folds = by_id(examples)
    assert folds["b0"] == folds["a3"] >= 0
    # Only rows of two classes that ask the same are no danger to each other.
    lonely = [*texts((12,)), *(replace(e, question="one and the same") for e in texts((0, 1, 1)))]
    folds = by_id(lonely)
    assert [folds[i] for i in ("b0", "c0")] == [-1, -1]


def test_rows_that_can_be_checked_must_do_for_the_folds() -> None:
    labels = tuple("abcdefghijklmnop")
    only = [Example(id=x, question=f"text of {x}", options=labels, answer=i) for i, x in enumerate(labels[4:], 4)]
    for checked, enough in ((9, False), (10, True)):
        examples = [*only, *(replace(e, options=labels) for e in texts((checked,)))]
        if enough:
            assert sorted(by_id(examples).values()) == sorted([-1] * 12 + [0, 1, 2, 3, 4] * 2)
        else:
            with pytest.raises(
                DataError, match=r"the 9 of 21 labelled rows that share their label .* too few for 5 folds"
            ):
                by_id(examples)
    with pytest.raises(DataError, match="the 0 of 12 labelled rows"):
        by_id(only)


def test_notes_name_labels_with_one_row_and_with_none() -> None:
    rows = [replace(e, options=(*LABELS, "d", "e", "f", "g")) for e in texts((20, 1, 9))]
    one, none = rare_notes(rows, "classification", assign_folds(rows, "classification", folds=5, seed=0))
    assert one.startswith(
        "1 labelled row(s) are all that 1 of 7 labels ('b') have, or all ask one question: they train every"
    )
    assert none.startswith("4 of 7 labels ('d', 'e', 'f', ...) have no labelled row")
    plenty = texts((20, 3, 9))
    assert rare_notes(plenty, "classification", assign_folds(plenty, "classification", folds=5, seed=0)) == ()
    options = questions(20)
    assert rare_notes(options, "multiple_choice", assign_folds(options, "multiple_choice", folds=5, seed=0)) == ()


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
