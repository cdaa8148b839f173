"""Variants of a question are found as by comparing every pair of rows, and nothing else is."""

from __future__ import annotations

import math
import random
from collections import Counter
from dataclasses import replace
from itertools import combinations

import pytest
from tiny import choice_row

from probekd.tasks.base import Example
from probekd.tasks.variants import LEAST_SIMILARITY, LEAST_WORDS, variant_keys

WORDS = tuple(f"word{i}" for i in range(60))


def asked(*questions: str) -> list[Example]:
    return [choice_row(f"q{i}", q, f"x{i}", f"y{i}", answer=i % 2) for i, q in enumerate(questions)]


def grown(n: int, seed: int) -> list[Example]:
    """Different questions, each new or one of the earlier ones with a few words replaced."""
    generator = random.Random(seed)
    made: dict[str, list[str]] = {}
    while len(made) < n:
        if made and generator.random() < 0.6:
            words = list(generator.choice(list(made.values())))
        else:
            words = generator.choices(WORDS, k=generator.choice((4, 9, 14)))
        for _ in range(generator.randint(0, 3)):
            words[generator.randrange(len(words))] = generator.choice(WORDS)
        made[" ".join(words)] = words
    return asked(*(f"{question}?" for question in made))


def groups(keys: list[str]) -> set[frozenset[int]]:
    return {frozenset(i for i, k in enumerate(keys) if k == key) for key in keys}


def by_every_pair(examples: list[Example]) -> set[frozenset[int]]:
    """The same in plain Python: smoothed inverse document frequencies, every pair, likeness passed on."""
    bags = [set(e.question.rstrip("?").split()) for e in examples]
    documents = Counter(word for bag in bags for word in bag)
    weights = [{w: math.log((1 + len(bags)) / (1 + documents[w])) + 1 for w in bag} for bag in bags]
    size = [math.sqrt(sum(v * v for v in bag.values())) for bag in weights]
    group = list(range(len(bags)))
    for i, j in combinations(range(len(bags)), 2):
        dot = sum(v * weights[j].get(w, 0.0) for w, v in weights[i].items())
        if dot >= LEAST_SIMILARITY * size[i] * size[j] and min(len(bags[i]), len(bags[j])) >= LEAST_WORDS:
            group = [group[i] if g == group[j] else g for g in group]
    return groups([str(g) for g in group])


@pytest.mark.parametrize("seed", range(6))
def test_the_same_groups_as_by_every_pair(seed: int) -> None:
    examples = grown(80, seed)
    found = groups(variant_keys(examples))
    assert found == by_every_pair(examples)
    assert 5 < len(found) < 80  # some are joined, and not all


def test_row_order_plays_no_part() -> None:
    examples = grown(60, 9)
    keys = dict(zip((e.id for e in examples), variant_keys(examples), strict=True))
    shuffled = random.Random(2).sample(examples, len(examples))
    assert dict(zip((e.id for e in shuffled), variant_keys(shuffled), strict=True)) == keys


def test_a_number_or_a_letter_makes_a_variant() -> None:
    others = ["what melts ice?", "who wrote the Iliad?", "which planet is red?", "name an acid", "where do newts live?"]
    keys = variant_keys(
        asked(
            "For some integer x, x^2 - 5 is divisible by all of the following EXCEPT",
            "For some integer y, y^2 - 5 is divisible by all of the following EXCEPT",
            "A train 240 m in length crosses a telegraph post in 16 seconds. What is its speed?",
            "A train 480 m in length crosses a telegraph post in 16 seconds. What is its speed?",
            *others,
        )
    )
    assert keys[0] == keys[1] and keys[2] == keys[3]
    assert len(set(keys)) == 2 + len(others)


def test_a_set_phrase_is_told_apart_by_its_options_and_a_twin_is_not() -> None:
    rows = asked(*["Which of these is a kind of animal?"] * 12, *["Which of these is a kind of plant?"] * 12)
    assert len(set(variant_keys(rows))) == 24
    twin = replace(rows[0], id="twin", options=rows[0].options[::-1])
    keys = variant_keys([*rows, twin])
    assert keys[-1] == keys[0] and len(set(keys)) == 24


@pytest.mark.parametrize("questions", [("?", "!", "..."), ("dog", "cat", "owl"), ("only",)])
def test_questions_of_no_words_and_of_one(questions: tuple[str, ...]) -> None:
    assert len(set(variant_keys(asked(*questions)))) == len(questions)
