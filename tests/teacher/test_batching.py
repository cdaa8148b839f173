from __future__ import annotations

import random

import pytest

from probekd.teacher.batching import fitting, shard_slices


@pytest.mark.parametrize("padded", [True, False])
@pytest.mark.parametrize("budget", [1, 64, 1000])
def test_a_batch_is_as_full_as_it_can_be(budget: int, padded: bool) -> None:
    draw = random.Random(0)
    sizes = sorted((draw.randint(1, 90) for _ in range(200)), reverse=True)
    while sizes:
        count = fitting(sizes, budget, padded=padded)

        def room(n: int, sizes: list[int] = sizes) -> int:
            return n * sizes[0] if padded else sum(sizes[:n])

        assert count == 1 or room(count) <= budget
        assert count == len(sizes) or room(count + 1) > budget
        sizes = sizes[count:]


@pytest.mark.parametrize(
    ("rows", "row_bytes", "expected"), [(5, 4, [2, 2, 1]), (5, 100, [1] * 5), (3, 1, [3]), (0, 4, []), (2, 0, [2])]
)
def test_shards_cover_the_rows_in_order(rows: int, row_bytes: int, expected: list[int]) -> None:
    slices = shard_slices(rows, row_bytes, 8)
    assert [len(s) for s in slices] == expected
    assert [r for s in slices for r in s] == list(range(rows))
