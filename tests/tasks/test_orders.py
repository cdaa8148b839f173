from __future__ import annotations

from collections import Counter
from itertools import permutations

import pytest

from probekd.tasks.orders import option_orders


@pytest.mark.parametrize(("options", "number"), [(2, 2), (3, 6), (3, 4), (4, 3), (4, 4), (4, 10), (4, 24), (5, 13)])
def test_orders_are_distinct_balanced_and_begin_with_the_rows_own(options: int, number: int) -> None:
    for row in ("a", "b", "mmlu/test/7"):
        orders = option_orders(row, options, number)
        assert len(orders) == number
        assert orders[0] == tuple(range(options))
        assert len(set(orders)) == number
        assert all(sorted(order) == list(range(options)) for order in orders)
        at = Counter((option, place) for order in orders for place, option in enumerate(order))
        counts = [at[option, place] for option in range(options) for place in range(options)]
        assert max(counts) - min(counts) == (1 if number % options else 0)


def test_more_orders_than_there_are_gives_every_one() -> None:
    for options in (0, 1, 2, 3, 4):
        orders = option_orders("row", options, 1000)
        assert sorted(orders) == sorted(permutations(range(options)))


def test_a_smaller_number_gives_the_first_of_a_larger() -> None:
    orders = option_orders("row", 4, 24)
    assert all(option_orders("row", 4, number) == orders[:number] for number in range(1, 25))


def test_rows_differ_in_their_orders() -> None:
    second = Counter(option_orders(f"row {i}", 4, 2)[1] for i in range(600))
    assert set(second) == {(1, 2, 3, 0), (2, 3, 0, 1), (3, 0, 1, 2)}
    assert min(second.values()) > 150
    assert len({option_orders(f"row {i}", 4, 5)[4] for i in range(600)}) == 20  # 24 but for the row's own four
