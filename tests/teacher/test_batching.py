from __future__ import annotations

import random

import pytest

from probekd.teacher.batching import shard_slices, token_batches


@pytest.mark.parametrize("budget", [1, 64, 1000])
def test_batches_hold_every_row_once_within_the_budget(budget: int) -> None:
    draw = random.Random(0)
    lengths = [draw.randint(1, 90) for _ in range(200)]
    batches = list(token_batches(lengths, budget))
    assert sorted(i for batch in batches for i in batch) == list(range(200))
    for batch in batches:
        assert len(batch) == 1 or max(lengths[i] for i in batch) * len(batch) <= budget


def test_batches_are_longest_first_and_as_full_as_they_can_be() -> None:
    assert list(token_batches([3, 9, 3, 10, 3, 2], 10)) == [[3], [1], [0, 2, 4], [5]]


def test_no_rows_no_batches() -> None:
    assert list(token_batches([], 10)) == []


@pytest.mark.parametrize(
    ("rows", "row_bytes", "expected"), [(5, 4, [2, 2, 1]), (5, 100, [1] * 5), (3, 1, [3]), (0, 4, []), (2, 0, [2])]
)
def test_shards_cover_the_rows_in_order(rows: int, row_bytes: int, expected: list[int]) -> None:
    slices = shard_slices(rows, row_bytes, 8)
    assert [len(s) for s in slices] == expected
    assert [r for s in slices for r in s] == list(range(rows))
