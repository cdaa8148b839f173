from __future__ import annotations

import numpy as np
import pytest

from probekd.errors import ModelError
from probekd.student.onnx.parity import EXACT, QUANTISED, Bound, compare, require
from probekd.tasks.base import Example

ROWS = [Example(id=name, question=name, options=("x", "y", "z")) for name in "abc"]
PLAIN = [np.array([0.5, 0.3, 0.2]), np.array([0.1, 0.9]), np.array([0.4, 0.4, 0.2])]


def test_the_worst_row_the_mean_and_the_picks() -> None:
    moved = [np.array([0.4, 0.45, 0.15]), np.array([0.1, 0.9]), np.array([0.38, 0.42, 0.2])]
    found = compare(ROWS, PLAIN, moved)
    assert (found.rows, found.worst_row) == (3, "a")
    assert found.worst == pytest.approx(0.15)
    assert found.mean == pytest.approx((0.15 + 0 + 0.02) / 3)
    # Row c was undecided, so that either of its best options is the same pick.
    assert found.agreement == pytest.approx(2 / 3)
    assert not found.within(QUANTISED)
    assert found.within(Bound(worst=0.2, mean=0.1, agreement=0.6))


def test_equal_answers_are_exact_and_answers_that_are_no_numbers_are_as_far_as_can_be() -> None:
    assert compare(ROWS, PLAIN, PLAIN).within(EXACT)
    broken = [PLAIN[0], np.array([np.nan, np.nan]), PLAIN[2]]
    found = compare(ROWS, PLAIN, broken)
    assert (found.worst, found.worst_row) == (1.0, "b")


@pytest.mark.parametrize(
    "bound",
    [
        Bound(worst=0.1, mean=1, agreement=0),
        Bound(worst=1, mean=0.01, agreement=0),
        Bound(worst=1, mean=1, agreement=1),
    ],
)
def test_each_part_of_a_bound_is_required(bound: Bound) -> None:
    moved = [np.array([0.4, 0.45, 0.15]), *PLAIN[1:]]
    with pytest.raises(ModelError, match=r"m\.onnx does not answer.*row 'a'.*66\.7% of the picks.*: mend it"):
        require(compare(ROWS, PLAIN, moved), bound, "m.onnx", "mend it")
