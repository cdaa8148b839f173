"""What is shared and where it lies, against counting by hand and tries."""

from __future__ import annotations

import random

import pytest

from probekd.prompts import TokenSequence
from probekd.teacher.packing import LEAST_SAVED, Branch, Tree, common_length, first_read, grouped, tree_of


def row(number: int, *sequences: tuple[int, ...], read_from: int | None = None) -> list[Branch]:
    """Sequences of one row; ``read_from`` is the first token whose state is read."""
    return [
        Branch(
            row=number,
            turn=0,
            first=i,
            sequence=TokenSequence(tokens=s, answer=len(s) - 1 if read_from is None else read_from),
        )
        for i, s in enumerate(sequences)
    ]


def nodes(sequences: list[tuple[int, ...]]) -> int:
    """Distinct beginnings: the tokens that a perfect sharing would compute."""
    return len({s[: i + 1] for s in sequences for i in range(len(s))})


@pytest.mark.parametrize(
    ("a", "b", "expected"), [((), (1,), 0), ((1, 2), (1, 2, 3), 2), ((1, 2), (1, 2), 2), ((1, 5, 3), (1, 6, 3), 1)]
)
def test_common_length(a: tuple[int, ...], b: tuple[int, ...], expected: int) -> None:
    assert common_length(a, b) == common_length(b, a) == expected


def test_the_first_token_that_is_read() -> None:
    tokens = tuple(range(10))
    assert first_read(TokenSequence(tokens=tokens, answer=9)) == 9
    assert first_read(TokenSequence(tokens=tokens, answer=9, options=((4, 6), (2, 3)))) == 2
    # The token before a scored span predicts its first.
    assert first_read(TokenSequence(tokens=tokens, answer=9, options=((6, 8),), scored=(5, 8))) == 4


def test_a_tree_holds_each_beginning_once() -> None:
    branches = row(0, (1, 2, 3, 4, 5), (1, 2, 3, 6), (1, 2, 3))
    tree = tree_of(branches)
    assert (tree.skipped, tree.trunk, tree.size) == (0, 3, 6)
    assert tree_of(row(0, (1, 2, 3))).size == 3
    assert tree_of(row(0, (1,), (2,))).size == 2


def test_rows_are_grouped_by_what_they_begin_with() -> None:
    draw = random.Random(0)
    shots = {subject: tuple(draw.randrange(100, 200) for _ in range(300)) for subject in range(3)}
    rows = [(*shots[i % 3], *(draw.randrange(50) for _ in range(20))) for i in range(12)]
    groups = grouped([tree_of(row(i, tokens)) for i, tokens in enumerate(rows)])
    assert len(groups) == 3
    assert {g.prefix for g in groups} == {shots[s] for s in range(3)}
    assert sorted(b.row for g in groups for t in g.trees for b in t.branches) == list(range(12))
    assert sum(g.size for g in groups) == 3 * 300 + 12 * 20
    assert sum(g.size for g in groups) <= nodes(rows) + 12 * 2  # chance beginnings of the questions are not shared


def test_a_group_is_made_only_where_it_saves_enough() -> None:
    short = tuple(range(LEAST_SAVED // 4))
    few = [tree_of(row(i, (*short, 1000 + i))) for i in range(4)]
    assert [g.prefix for g in grouped(few)] == [()]
    assert [g.prefix for g in grouped([*few, tree_of(row(4, (*short, 2000)))])] == [short]
    assert grouped([]) == []


def test_what_is_read_is_not_shared_with_other_rows() -> None:
    same = tuple(range(600))
    groups = grouped([tree_of(row(i, same, read_from=500)) for i in range(3)])
    assert [len(g.prefix) for g in groups] == [500]
    trees = [t for g in groups for t in g.trees]
    assert [(t.skipped, t.trunk, t.size) for t in trees] == [(500, 100, 100)] * 3


def test_a_row_that_shares_little_does_not_shorten_the_prefix_of_others() -> None:
    shots = tuple(range(1000, 1400))
    rows = [(*shots, i) for i in range(4)] + [(*shots[:20], *range(50, 90))]
    groups = grouped([tree_of(row(i, tokens)) for i, tokens in enumerate(rows)])
    assert sorted(len(g.prefix) for g in groups) == [0, 400]


def test_sizes_of_trees_in_a_group() -> None:
    tree = Tree(skipped=5, trunk=2, branches=tuple(row(0, tuple(range(10)), tuple(range(8)))))
    assert tree.size == 2 + 3 + 1


def test_long_questions_do_not_keep_rows_from_sharing() -> None:
    draw = random.Random(0)
    shots = tuple(range(1000, 1040))
    rows = [(*shots, *(draw.randrange(50) for _ in range(draw.choice((5, 300))))) for _ in range(20)]
    rows += [(*shots[:2], *(draw.randrange(50) for _ in range(30))) for _ in range(3)]
    groups = grouped([tree_of(row(i, tokens)) for i, tokens in enumerate(rows)])
    assert [(g.prefix, len(g.trees)) for g in groups if g.prefix] == [(shots, 20)]


@pytest.mark.parametrize("seed", range(20))
def test_no_other_way_of_cutting_the_sorted_rows_into_groups_saves_more(
    seed: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    from probekd.teacher import packing

    monkeypatch.setattr(packing, "LEAST_SAVED", 6)
    draw = random.Random(seed)
    rows = sorted(tuple(draw.choices((0, 1), k=draw.randint(3, 9))) for _ in range(9))
    trees = [tree_of(row(i, tokens)) for i, tokens in enumerate(rows)]

    def saving(a: int, z: int) -> int:
        shared = min([t.unread for t in trees[a:z]] + [common_length(rows[i], rows[i + 1]) for i in range(a, z - 1)])
        return max(0, shared * (z - a - 1) - 6)

    best = [0] * 10
    for z in range(1, 10):
        best[z] = max(best[a] + saving(a, z) for a in range(z))
    groups = grouped(trees)
    made = sum(len(g.prefix) * (len(g.trees) - 1) - 6 for g in groups if g.prefix)
    assert made == best[9]
    assert sorted(b.row for g in groups for t in g.trees for b in t.branches) == list(range(9))
