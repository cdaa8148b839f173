from __future__ import annotations

import numpy as np
import pytest

from probekd.student.order import StepSampler, step_order


def lengths_of(n: int) -> list[int]:
    return [int(x) for x in np.random.default_rng(n).integers(5, 200, size=n)]


def order(n: int, *, step_rows: int = 8, multiple: int = 1, seed: int = 0, epoch: int = 0) -> list[int]:
    return step_order(lengths_of(n), step_rows=step_rows, multiple=multiple, seed=seed, epoch=epoch)


@pytest.mark.parametrize("n", [1, 7, 8, 9, 64, 1001])
def test_every_row_comes_once_an_epoch(n: int) -> None:
    assert sorted(order(n)) == list(range(n))


def test_seed_and_epoch_decide_the_order_and_nothing_else() -> None:
    np.random.seed(1)
    first = order(100)
    np.random.seed(2)
    assert order(100) == first
    assert len({tuple(order(100, seed=s, epoch=e)) for s in range(2) for e in range(3)}) == 6


def test_the_order_does_not_depend_on_how_a_step_is_divided() -> None:
    """Four processes get the rows of one in the same steps; what fills the last one up counts for nothing."""
    alone, dealt = order(99, multiple=1), order(99, multiple=4)
    assert dealt[:99] == alone
    assert len(dealt) == 100
    assert dealt[99] - 99 in alone[96:]


def test_rows_of_a_step_are_of_similar_length() -> None:
    n, step = 2000, 8
    lengths = np.array(lengths_of(n))
    steps = np.array(order(n, step_rows=step)).reshape(-1, step)
    spread = np.mean([np.ptp(lengths[s]) for s in steps])
    at_random = np.mean([np.ptp(lengths[s]) for s in np.random.default_rng(0).permutation(n).reshape(-1, step)])
    assert spread < at_random / 10


def test_the_longest_row_comes_in_the_first_step_and_the_rest_at_random() -> None:
    n = 800
    lengths = np.array(lengths_of(n))
    for epoch in range(5):
        steps = lengths[np.array(order(n, epoch=epoch)).reshape(-1, 8)].mean(axis=1)
        assert lengths[order(n, epoch=epoch)[:8]].max() == lengths.max()
        assert abs(np.corrcoef(np.arange(len(steps) - 1), steps[1:])[0, 1]) < 0.35


def test_equally_long_rows_do_not_all_come_first() -> None:
    cut = [256] * 100 + [20] * 700
    steps = np.array(step_order(cut, step_rows=8, multiple=1, seed=0, epoch=0)).reshape(-1, 8) < 100
    assert np.nonzero(steps.any(axis=1))[0].max() > 50


def test_the_sampler_follows_the_epoch() -> None:
    sampler = StepSampler(lengths_of(30), step_rows=8, multiple=4, seed=3)
    assert len(sampler) == len(list(sampler)) == 32
    first = list(sampler)
    assert list(sampler) == first
    sampler.set_epoch(1)
    assert list(sampler) == order(30, multiple=4, seed=3, epoch=1) != first
