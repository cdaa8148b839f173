from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

import pytest

from probekd.report.data import Comparison, RunData, read_run
from probekd.report.verdict import advantage, difference_words, judge, signed


@pytest.fixture
def data(new_run: Callable[..., Any]) -> RunData:
    return read_run(new_run("classification", 60).directory)


def compared(rival: str, metric: str, ci: tuple[float, float], **changes: Any) -> Comparison:
    values: Mapping[str, Any] = {
        "split": "test", "a": "student", "b": rival, "metric": metric, "difference": sum(ci) / 2, "ci": ci, "p_value": 0.01, "n": 60,
        **changes,
    }  # fmt: skip
    return Comparison(**values)


BETTER, WORSE, EVEN = (0.02, 0.1), (-0.1, -0.02), (-0.04, 0.06)


@pytest.mark.parametrize(
    ("comparison", "who", "expected"),
    [
        (compared("b", "accuracy", BETTER), "student", 1),
        (compared("b", "accuracy", BETTER), "b", -1),
        (compared("b", "nll", BETTER), "student", -1),
        (compared("b", "nll", WORSE), "student", 1),
        (compared("b", "ece", WORSE), "b", -1),
        (compared("b", "accuracy", EVEN), "student", 0),
    ],
)
def test_advantage_knows_which_way_a_metric_points(comparison: Comparison, who: str, expected: int) -> None:
    assert advantage(comparison, who) == expected


@pytest.mark.parametrize(
    ("labels", "logit", "standing"),
    [
        (BETTER, BETTER, "borne out"),
        (BETTER, EVEN, "not settled"),
        (WORSE, BETTER, "contradicted"),
        (EVEN, WORSE, "contradicted"),
    ],
)
def test_standing_follows_the_accuracy_of_the_students(
    data: RunData, labels: tuple[float, float], logit: tuple[float, float], standing: str
) -> None:
    found = (compared("student:labels", "accuracy", labels), compared("student:calibrated-logit-kd", "accuracy", logit))
    assert judge(replace(data, comparisons=found)).standing == standing


def test_a_contradiction_is_the_headline_and_says_which_student_to_serve(data: RunData) -> None:
    found = (compared("student:labels", "accuracy", WORSE), compared("student:calibrated-logit-kd", "accuracy", BETTER))
    verdict = judge(replace(data, comparisons=found))
    assert verdict.headline == "The gate said worth it; the trained students say otherwise."
    assert verdict.advice.endswith("Serve the student trained on the labels alone.")
    assert "6.0 points lower accuracy (95% interval \N{MINUS SIGN}10.0 to \N{MINUS SIGN}2.0)" in verdict.students[0]


def test_the_order_of_a_pair_does_not_matter(data: RunData) -> None:
    turned = compared("student", "accuracy", WORSE, a="student:labels")
    other = compared("student:calibrated-logit-kd", "accuracy", BETTER)
    verdict = judge(replace(data, comparisons=(turned, other)))
    assert verdict.standing == "borne out"
    assert "the student trained on the probe's targets has 6.0 points higher accuracy" in verdict.students[0]


def test_log_loss_decides_where_accuracy_does_not(data: RunData) -> None:
    found = (
        compared("student:labels", "accuracy", EVEN),
        compared("student:labels", "nll", BETTER),
        compared("student:calibrated-logit-kd", "accuracy", BETTER),
    )
    verdict = judge(replace(data, comparisons=found))
    assert verdict.standing == "contradicted" and "nats higher log-loss" in verdict.students[0]


def test_only_the_main_split_is_asked(data: RunData) -> None:
    found = tuple(
        compared(f"student:{m}", "accuracy", WORSE, split="validation") for m in ("labels", "calibrated-logit-kd")
    )
    verdict = judge(replace(data, comparisons=found))
    assert verdict.standing == "not tested" and all(
        s.endswith("the difference was not tested.") for s in verdict.students
    )


@pytest.mark.parametrize(
    ("verdict", "headline", "setting"),
    [
        ("logit-kd", "Not worth it here: distil the teacher's output.", "student.method to calibrated-logit-kd"),
        ("labels", "Not worth it here: train on the labels alone.", "student.method to labels"),
    ],
)
def test_a_negative_gate_says_what_to_do_instead(data: RunData, verdict: str, headline: str, setting: str) -> None:
    gate = replace(data.gate, verdict=verdict, difference=0.01, ci=(-0.02, 0.04))
    said = judge(replace(data, gate=gate, comparisons=()))
    assert said.headline == headline and setting in said.advice
    assert "0.010 nats higher log-loss" in said.evidence and "no clear difference" in said.evidence


def test_without_a_student_of_the_advised_method_nothing_is_claimed(data: RunData) -> None:
    scores = {"test": {who: s for who, s in data.scores["test"].items() if who != "student:labels"}}
    said = judge(replace(data, scores=scores, gate=replace(data.gate, verdict="labels")))
    assert said.standing == "not tested" and "cannot test the advice" in said.students[0]


def test_numbers_keep_their_sign_and_zero_has_none() -> None:
    assert [signed(v, 1) for v in (1.26, -1.26, -0.04)] == ["+1.3", "\N{MINUS SIGN}1.3", "0.0"]
    assert difference_words("accuracy", -0.031, (-0.052, 0.001)) == (
        "3.1 points lower accuracy (95% interval \N{MINUS SIGN}5.2 to +0.1)"
    )
