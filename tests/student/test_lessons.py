from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest

from probekd.config import StudentConfig
from probekd.errors import ConfigError, DataError
from probekd.methods import RECIPES, Evidence
from probekd.methods.single import SMOOTHING
from probekd.student.lessons import gold_lessons, soft_lessons, standardised, with_states
from probekd.student.linear import mixture
from probekd.student.losses import RowWeights
from probekd.targets import SoftTargets
from probekd.tasks.base import Example

CONFIG = StudentConfig(model="m", alpha=0.25)
ROWS = [
    Example(id="a", question="q", options=("x", "y"), answer=1),
    Example(id="b", question="q", options=("x", "y", "z")),
]


def targets_of(*logits: list[float]) -> SoftTargets:
    n = len(logits)
    return SoftTargets(
        ids=tuple("ab"[:n]),
        splits=("train",) * n,
        logits=tuple(np.array(row, dtype=float) for row in logits),
        sources=("oof",) * n,
        folds=(-1,) * n,
    )


def test_gold_lessons_teach_labelled_rows_alone() -> None:
    found = gold_lessons(ROWS)
    assert found["a"].answer == 1 and found["a"].weights == RowWeights(gold=1.0, soft=0.0)
    assert found["b"].weights == RowWeights(gold=0.0, soft=0.0)
    assert found["b"].target_logits.tolist() == [0, 0, 0]


def test_soft_lessons_share_a_labelled_row_between_label_and_target() -> None:
    found = soft_lessons(ROWS, targets_of([1, 2], [3, 4, 5]), CONFIG, "task")
    assert found["a"].weights == RowWeights(gold=0.25, soft=0.75)
    assert found["b"].weights == RowWeights(gold=0.0, soft=1.0)
    assert found["b"].target_logits.tolist() == [3, 4, 5]


def test_confidence_is_relative_to_all_rows() -> None:
    config = CONFIG.model_copy(update={"confidence_weights": True})
    found = soft_lessons(ROWS, targets_of([0, -math.inf], [0, 0, -math.inf]), config, "task")
    sure, unsure = 1.0, 1 - math.log(2) / math.log(3)
    mean = (sure + unsure) / 2
    assert found["a"].weights.soft == pytest.approx(0.75 * sure / mean)
    assert found["b"].weights.soft == pytest.approx(unsure / mean)
    assert found["a"].weights.gold == 0.25


def test_a_target_that_is_the_gold_label_teaches_that_alone() -> None:
    targets = replace(targets_of([-math.inf, 0], [3, 4, 5]), sources=("gold", "pooled"))
    for divergence in ("forward_kl", "reverse_kl"):
        config = CONFIG.model_copy(update={"divergence": divergence, "confidence_weights": True})
        found = soft_lessons(ROWS, targets, config, "task")
        assert found["a"].weights == RowWeights(gold=1.0, soft=0.0) and found["a"].answer == 1
        assert found["b"].weights == RowWeights(gold=0.0, soft=1.0)


@pytest.mark.parametrize("alpha", [0.0, 0.5, 1.0])
def test_a_smoothed_label_is_taught_with_the_share_that_alpha_leaves(alpha: float) -> None:
    row = replace(ROWS[1], answer=2)
    evidence = Evidence(labelled=(row,), pool=(), folds=np.array([-1]), views={})
    config = CONFIG.model_copy(update={"alpha": alpha})
    lesson = soft_lessons([row], RECIPES["label-smoothing"].make(evidence), config, "task")["b"]
    weight, told = mixture(lesson, 1.0)
    share = (1 - alpha) * SMOOTHING / 3
    assert weight == pytest.approx(1) and told == pytest.approx([share, share, 1 - 2 * share])


def test_reverse_kl_refuses_a_target_that_rules_an_option_out() -> None:
    config = CONFIG.model_copy(update={"divergence": "reverse_kl"})
    with pytest.raises(ConfigError, match=r"task kinds, row 'b': the target rules an option out"):
        soft_lessons(ROWS, targets_of([0, 1], [0, 0, -math.inf]), config, "task kinds")


def test_states_are_standardised_over_all_rows_and_options() -> None:
    generator = np.random.default_rng(0)
    states = [generator.normal(size=(k, 4)) * [1, 1000, 0.1, 0] + [5, 0, 0, 3] for k in (2, 3, 4)]
    found = np.concatenate(standardised(states))
    np.testing.assert_allclose(found.mean(axis=0), 0, atol=1e-6)
    np.testing.assert_allclose(found.std(axis=0), [1, 1, 1, 0], atol=1e-6)
    assert found.dtype == np.float32
    assert [len(row) for row in standardised(states)] == [2, 3, 4]


def test_each_row_gets_its_own_state() -> None:
    lessons = gold_lessons(ROWS)
    answer = with_states(lessons, ROWS, {"b": np.array([1.0, 0.0]), "a": np.array([3.0, 0.0])}, "task")
    assert answer["a"].states is not None and answer["a"].states.tolist() == [[1.0, 0.0]]
    options = with_states(lessons, ROWS, {"a": np.ones((2, 4)), "b": np.zeros((3, 4))}, "task")
    assert {i: row.states.shape for i, row in options.items() if row.states is not None} == {"a": (2, 4), "b": (3, 4)}
    assert options["a"].weights == lessons["a"].weights


@pytest.mark.parametrize(
    ("states", "message"),
    [
        ({"a": np.zeros(4)}, r"1 of 2 .* no teacher state, such as 'b'"),
        ({"a": np.zeros(4), "b": np.zeros(5)}, r"row 'a': teacher states of shape \(4,\)"),
        ({"a": np.zeros((2, 4)), "b": np.zeros((2, 4))}, r"row 'b': .* each of the 3 options"),
    ],
)
def test_states_that_do_not_fit_are_an_error(states: dict[str, np.ndarray], message: str) -> None:
    with pytest.raises(DataError, match=message):
        with_states(gold_lessons(ROWS), ROWS, states, "task t")
