"""Rows read in several option orders, against rows whose options are really written in those orders."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest
import torch
from tiny import choice_row

from probekd.config import PromptConfig, TeacherConfig
from probekd.errors import StoreError
from probekd.extraction import extract
from probekd.states import States
from probekd.tasks.base import Task, without_questions
from probekd.teacher.load import Teacher

TeacherOf = Callable[[str], Teacher]
OPTION_POSITIONS = ("option_end", "option_mean")
M = 5  # more than the three options of a row, so that a second base is needed, and no multiple of any row's number


@pytest.fixture
def mixed(choices: Task) -> Task:
    """2 to 5 options in the rows of one split."""
    rows = (*choices.rows(), choice_row("two", "Is the hammer a tool?", "yes", "the old hammer is"))
    return replace(choices, splits={"train": rows})


def permuted(task: Task, number: int = M, **prompt: object) -> Task:
    return replace(task, prompt=PromptConfig(permutations=number, **prompt))


def written_out(task: Task, orders: dict[str, list[list[int]]]) -> Task:
    """A row for each order of each row, its options written in that order: nothing is left to permute."""
    rows = tuple(
        replace(row, id=f"{row.id}/{turn}", options=tuple(row.options[i] for i in order), answer=None)
        for row in task.rows("train")
        for turn, order in enumerate(orders[row.id])
    )
    return replace(task, splits={"train": rows}, prompt=PromptConfig())


def orders_of(states: States, task: Task) -> dict[str, list[list[int]]]:
    ids = [row.id for row in task.rows("train")]
    return dict(zip(ids, states.column("listed", "orders", ids), strict=True))


def distinct(orders: list[list[int]]) -> int:
    return len({tuple(order) for order in orders})


def expect_close(ours: np.ndarray, theirs: np.ndarray) -> None:
    assert ours.shape == theirs.shape
    assert np.abs(ours - theirs).max() <= 1e-4 * np.abs(theirs).max()


@pytest.mark.parametrize("family", ["llama", "gemma3", "bert"])
def test_states_are_those_of_rows_really_reordered(family: str, teacher_of: TeacherOf, mixed: Task) -> None:
    teacher = teacher_of(family)
    states = extract(teacher, permuted(mixed), layouts=["listed"])
    orders = orders_of(states, mixed)
    alone = extract(teacher, written_out(mixed, orders), layouts=["listed"])
    for row in mixed.rows("train"):
        count = distinct(orders[row.id])
        ids = [f"{row.id}/{turn}" for turn in range(M)]
        assert count == min(M, 2 if row.id == "two" else M)
        for depth in range(teacher.depths + 1):
            answer = states.read("listed", "answer", depth, [row.id])[0]
            expect_close(answer, alone.read("listed", "answer", depth, ids))
            for position in OPTION_POSITIONS:
                ours = states.read("listed", position, depth, [row.id])[0]
                theirs = alone.read("listed", position, depth, ids[:count])
                for option in range(len(row.options)):
                    places = [order.index(option) for order in orders[row.id][:count]]
                    expect_close(ours[option], np.mean([theirs[t, p] for t, p in enumerate(places)], axis=0))
                assert not ours[len(row.options) :].any()


@pytest.mark.parametrize("family", ["llama", "gemma2"])
def test_label_logits_are_means_over_texts_written_by_hand(family: str, teacher_of: TeacherOf, mixed: Task) -> None:
    teacher = teacher_of(family)
    states = extract(teacher, permuted(mixed), layouts=["listed"])
    orders = orders_of(states, mixed)
    for row in mixed.rows("train"):
        letters = "ABCDE"[: len(row.options)]
        tokens = [teacher.tokenizer(f" {c}", add_special_tokens=False)["input_ids"][0] for c in letters]
        said = np.zeros(len(row.options))
        for order in orders[row.id][: distinct(orders[row.id])]:
            lines = "".join(f"{c}. {row.options[i]}\n" for c, i in zip(letters, order, strict=True))
            ids = teacher.tokenizer(f"{row.question}\n{lines}Answer:")["input_ids"]
            with torch.inference_mode():
                logits = teacher.model(input_ids=torch.tensor([ids])).logits[0, -1, tokens].double()
            for logp, i in zip(logits.log_softmax(0).tolist(), order, strict=True):
                said[i] += logp / distinct(orders[row.id])
        np.testing.assert_allclose(
            states.column("listed", "label_logits", [row.id])[0], said, rtol=1e-4, atol=1e-4, err_msg=row.id
        )


def test_a_mean_of_a_linear_readers_logits_is_its_logit_of_the_mean(llama: Teacher, mixed: Task) -> None:
    states = extract(llama, permuted(mixed), layouts=["listed"])
    orders = orders_of(states, mixed)
    alone = extract(llama, written_out(mixed, orders), layouts=["listed"])
    weight = np.random.default_rng(0).normal(size=llama.width)
    logits = alone.read("listed", "option_end", 2, [f"b/{turn}" for turn in range(M)]) @ weight
    by_option = [np.mean([logits[t, o.index(i)] for t, o in enumerate(orders["b"])]) for i in range(5)]
    np.testing.assert_allclose(states.read("listed", "option_end", 2, ["b"])[0] @ weight, by_option, rtol=1e-4)


def test_means_of_bfloat16_states_lose_no_more_than_their_own_rounding(
    model_dir: Callable[[str], object], mixed: Task
) -> None:
    exact, rough = (
        extract(TeacherConfig(model=str(model_dir("llama")), dtype=dtype), permuted(mixed, 8), layouts=["listed"])
        for dtype in ("float32", "bfloat16")
    )
    ours, theirs = (s.read("listed", "option_mean", 3, ["a", "b"]) for s in (rough, exact))
    assert 0 < np.abs(ours - theirs).max() < 0.05 * np.abs(theirs).max()


def test_the_store_says_in_which_orders(llama: Teacher, mixed: Task) -> None:
    states = extract(llama, permuted(mixed, 3), layouts=["listed"])
    store = states.stores[0]
    assert (store.manifest["permutations"], store.permutations, states.permutations("listed")) == (3, 3, 3)
    orders = orders_of(states, mixed)
    assert orders["two"] == [[0, 1], [1, 0], [0, 1]]
    for row in mixed.rows("train"):
        assert orders[row.id][0] == list(range(len(row.options)))
        assert distinct(orders[row.id]) == (2 if row.id == "two" else 3)
    assert store.verify() == []
    assert store.manifest["tokens"] == sum(store.index["num_tokens"])


def test_shards_of_permuted_rows_hold_what_one_shard_would(
    llama: Teacher, mixed: Task, monkeypatch: pytest.MonkeyPatch, tmp_path: object
) -> None:
    whole = extract(llama, permuted(mixed), layouts=["listed"], cache=tmp_path / "whole")
    monkeypatch.setattr("probekd.extraction.job.ROWS_AT_ONCE", 2)
    parts = extract(llama, permuted(mixed), layouts=["listed"], cache=tmp_path / "parts")
    assert len(parts.stores[0].manifest["shards"]) == 3
    ids = [row.id for row in mixed.rows("train")]
    for position in ("answer", *OPTION_POSITIONS):
        expect_close(parts.read("listed", position, 2, ids), whole.read("listed", position, 2, ids))


# Keys -----------------------------------------------------------------------------------------------------------------


def keys(teacher: Teacher, task: Task, layout: str = "listed") -> list[str]:
    return [store.directory.name for store in extract(teacher, task, layouts=[layout]).stores]


def test_the_key_knows_the_orders_and_is_blind_to_row_order(llama: Teacher, mixed: Task) -> None:
    two = replace(mixed, splits={"train": mixed.splits["train"][-1:]})
    # A row with two options is read in the same two orders whatever is asked for; its answer states are not the same.
    found = [keys(llama, permuted(two, number)) for number in (1, 2, 3)] + [keys(llama, permuted(mixed, 3))]
    assert len({key for (key,) in found}) == 4
    backwards = replace(mixed, splits={"train": mixed.splits["train"][::-1]})
    assert keys(llama, permuted(backwards, 3)) == found[-1]


def test_branches_and_classification_have_no_orders(llama: Teacher, mixed: Task, kinds_of_text: Task) -> None:
    assert keys(llama, permuted(mixed), "branched") == keys(llama, mixed, "branched")
    assert keys(llama, permuted(kinds_of_text)) == keys(llama, kinds_of_text)
    states = extract(llama, permuted(kinds_of_text))
    assert states.read("listed", "answer", 1, ["k0", "k1"]).shape == (2, 32)


def test_stores_of_different_orders_are_not_mixed(llama: Teacher, mixed: Task) -> None:
    some, rest = (replace(mixed, splits={"train": rows}) for rows in (mixed.rows()[:2], mixed.rows()[2:]))
    states = extract(llama, permuted(some, 2)) + extract(llama, rest)
    for read in (
        lambda: states.read("listed", "option_end", 1, ["a"]),
        lambda: states.column("listed", "label_logits", ["a"]),
    ):
        with pytest.raises(StoreError, match="listed states read in 1 and 2 option orders cannot be used together"):
            read()
    assert states.read("branched", "option_end", 1, ["a", "two"]).shape == (2, 5, 32)


# Options without the question -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("family", ["llama", "bert"])
def test_options_are_read_without_the_question(family: str, teacher_of: TeacherOf, mixed: Task) -> None:
    teacher = teacher_of(family)
    bare = without_questions(mixed)
    states = extract(teacher, bare)
    other = replace(mixed, splits={"train": tuple(replace(e, question=f"Not so: {e.question}") for e in mixed.rows())})
    reworded = extract(teacher, without_questions(other))
    assert [s.directory for s in reworded.stores] == [s.directory for s in states.stores]
    for layout in ("listed", "branched"):
        assert keys(teacher, bare, layout) != keys(teacher, mixed, layout)
        ids = [row.id for row in mixed.rows()]
        assert states.read(layout, "option_end", 1, ids).shape == (len(ids), 5, 32)


def test_the_control_is_read_in_several_orders_too(llama: Teacher, mixed: Task) -> None:
    states = extract(llama, without_questions(permuted(mixed, 2)), layouts=["listed"])
    assert states.read("listed", "answer", 1, ["a", "two"]).shape == (2, 2, 32)
