from __future__ import annotations

import numpy as np
import pytest

from probekd.errors import StoreError
from probekd.report import breakdown
from probekd.report.data import Predictions
from probekd.tasks.base import Example


def draw(rng: np.random.Generator, answers: np.ndarray, counts: list[int]) -> Predictions:
    probs = tuple(rng.dirichlet(np.ones(k)) for k in counts)
    return Predictions(ids=tuple(f"r{i:03}" for i in range(len(answers))), probs=probs, answers=answers)


@pytest.fixture
def pair() -> tuple[Predictions, Predictions]:
    rng = np.random.default_rng(3)
    counts = [3 + i % 3 for i in range(300)]
    answers = np.array([int(rng.integers(k)) for k in counts])
    return draw(rng, answers, counts), draw(rng, answers, counts)


def test_disagreements_are_the_clearest_by_brute_force(pair: tuple[Predictions, Predictions]) -> None:
    loser, winner = pair
    found = []
    for i, gold in enumerate(winner.answers):
        wrong = max(range(len(loser.probs[i])), key=lambda k: loser.probs[i][k]) != gold
        right = max(range(len(winner.probs[i])), key=lambda k: winner.probs[i][k]) == gold
        if wrong and right:
            found.append((loser.probs[i][gold] - winner.probs[i][gold], i))
    total, rows = breakdown.disagreements(loser, winner)
    assert total == len(found) > 20
    assert list(rows) == [i for _, i in sorted(found)[:20]]


def test_fewer_disagreements_than_asked_for() -> None:
    one = Predictions(ids=("a", "b"), probs=(np.array([0.9, 0.1]), np.array([0.4, 0.6])), answers=np.array([0, 1]))
    other = Predictions(ids=("a", "b"), probs=(np.array([0.2, 0.8]), np.array([0.4, 0.6])), answers=np.array([0, 1]))
    assert breakdown.disagreements(other, one) == (1, (0,))
    assert breakdown.disagreements(one, other) == (0, ())


def test_bins_agree_with_the_definition_of_ece(pair: tuple[Predictions, Predictions]) -> None:
    bins = breakdown.calibration_bins(pair[0])
    assert [b.count for b in bins] == np.histogram(pair[0].confidences, bins=np.linspace(0, 1, 16))[0].tolist()
    for one in (b for b in bins if b.count):
        inside = [i for i, c in enumerate(pair[0].confidences) if one.low <= c < one.high]
        assert one.accuracy == pytest.approx(np.mean([pair[0].tops[i] == pair[0].answers[i] for i in inside]))
        assert one.low <= one.confidence <= one.high


def test_full_confidence_falls_into_the_last_bin() -> None:
    sure = Predictions(ids=("a",), probs=(np.array([1.0, 0.0]),), answers=np.array([0]))
    assert [b.count for b in breakdown.calibration_bins(sure)] == [0] * 14 + [1]


def test_confusions_count_gold_by_row_and_answer_by_column() -> None:
    counts = np.array([[3, 2, 0], [0, 4, 1], [2, 0, 5]])
    gold, said = zip(*[(g, s) for g in range(3) for s in range(3) for _ in range(counts[g, s])], strict=True)
    one = Predictions(ids=tuple(map(str, range(17))), probs=tuple(np.eye(3)[list(said)]), answers=np.array(gold))
    assert breakdown.confusion(one, 3).tolist() == counts.tolist()
    pairs = breakdown.confused_pairs(counts, ["x", "y", "z"])
    assert [(p.gold, p.said, p.count) for p in pairs] == [("x", "y", 2), ("z", "x", 2), ("y", "z", 1)]
    assert [p.share for p in pairs] == pytest.approx([2 / 5, 2 / 7, 1 / 5])


def test_groups_partition_the_rows(pair: tuple[Predictions, Predictions]) -> None:
    one = pair[0]
    examples = {
        row: Example(id=row, question="q", options=tuple("abcde"[: len(p)]), answer=int(a))
        for row, p, a in zip(one.ids, one.probs, one.answers, strict=True)
    }
    found = breakdown.groups({"probe": one}, examples, lambda e: f"{len(e.options)} options")
    assert {g.name: g.n for g in found} == {"3 options": 100, "4 options": 100, "5 options": 100}
    assert {g.name: g.chance for g in found} == pytest.approx(
        {"3 options": 1 / 3, "4 options": 1 / 4, "5 options": 1 / 5}
    )
    assert sum(g.n * g.accuracy["probe"] for g in found) == pytest.approx((one.tops == one.answers).sum())


def test_a_row_that_the_task_lost_or_changed_is_named() -> None:
    with pytest.raises(StoreError, match="no row 'gone'"):
        breakdown.example_of({}, "gone", 3)
    with pytest.raises(StoreError, match="'a' has 3 probabilities but 2 options"):
        breakdown.example_of({"a": Example(id="a", question="q", options=("x", "y"))}, "a", 3)


def test_of_many_labels_a_case_shows_gold_and_the_two_choices() -> None:
    example = Example(id="a", question="q" * 2000, options=tuple(f"label {i}" for i in range(30)), answer=7)
    teacher, probe = np.full(30, 0.01), np.full(30, 0.01)
    teacher[3], probe[7] = 0.71, 0.71
    case = breakdown.case(example, teacher, probe, 7, lettered=False)
    assert [(o.text, o.gold, o.teacher_top, o.probe_top) for o in case.options] == [
        ("label 3", False, True, False),
        ("label 7", True, False, True),
    ]
    assert case.hidden == 28 and case.question.endswith("(+1,100 characters)")
