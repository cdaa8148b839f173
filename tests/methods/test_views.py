from __future__ import annotations

import numpy as np

from probekd.methods import student_view
from probekd.tasks.base import Example


def row(number: int, options: int) -> Example:
    return Example(id=str(number), question="?", options=tuple("abcd"[:options]))


def test_a_student_that_is_certain_has_finite_logits_and_others_their_own() -> None:
    probs = [np.array([1.0, 0.0]), np.array([0.2, 0.7, 0.1])]
    view = student_view([row(0, 3), row(1, 2)], probs, 3)
    np.testing.assert_array_equal(view.honest, [[0, 0, 0], [0, 0, -np.inf]])
    assert np.isfinite(view.pool[0, :2]).all() and view.pool[0, 2] == -np.inf
    np.testing.assert_array_equal(view.pool[1], np.log(probs[1]))
