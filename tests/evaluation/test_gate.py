import json
import re

import numpy as np
import pytest
from scipy.special import softmax

from probekd.evaluation.gate import Gate, judge

N = 80
READERS = ("probe", "teacher_output", "student_alone")


def reader(strength: float, answers: np.ndarray, generator: np.random.Generator) -> list[np.ndarray]:
    """Distributions over three options that favour the gold one by ``strength`` under noise of size one."""
    logits = strength * np.eye(3)[answers] + generator.normal(size=(len(answers), 3))
    return list(softmax(logits, axis=1))


def judged(probe: float, output: float, alone: float, *, seed: int = 0, resamples: int = 500, n: int = N) -> Gate:
    generator = np.random.default_rng(seed)
    answers = generator.integers(0, 3, n)
    probs = {who: reader(s, answers, generator) for who, s in zip(READERS, (probe, output, alone), strict=True)}
    return judge(probs, answers.tolist(), folds=1, resamples=resamples, seed=seed)[0]


@pytest.mark.parametrize(
    ("strengths", "verdict"),
    [
        ((3, 0, 0), "probe-kd"),
        ((3, 1, 0), "probe-kd"),
        ((3, 0, 1), "probe-kd"),
        ((0, 3, 0), "logit-kd"),
        ((3, 3, 0), "logit-kd"),  # the probe is good, but words are as good and simpler
        ((0, 0, 0), "labels"),
        ((0, 0, 3), "labels"),
        ((3, 0, 3), "labels"),  # beats the words, not the student alone
        ((0, 3, 3), "labels"),
    ],
)
def test_each_step_up_must_be_earned(strengths: tuple[float, float, float], verdict: str) -> None:
    assert judged(*strengths).verdict == verdict


def test_equally_good_readers_are_hardly_ever_told_to_pay_for_a_probe() -> None:
    verdicts = [judged(1, 1, 1, seed=s, resamples=200, n=60).verdict for s in range(200)]
    assert verdicts.count("probe-kd") <= 10
    assert verdicts.count("labels") >= 180


def test_the_rival_is_the_stronger_one_and_the_difference_is_probe_minus_rival() -> None:
    strong_words, strong_student = judged(3, 1, 0), judged(3, 0, 1)
    assert (strong_words.versus, strong_student.versus) == ("teacher_output", "student_alone")
    for gate in (strong_words, strong_student):
        assert gate.ci[0] < gate.difference < gate.ci[1] < 0
        assert gate.accuracy_ci[0] <= gate.accuracy_difference <= gate.accuracy_ci[1]
        assert gate.accuracy_difference > 0
        assert (gate.metric, gate.n) == ("nll", N)


def test_difference_equals_that_of_the_mean_log_losses() -> None:
    generator = np.random.default_rng(1)
    answers = generator.integers(0, 3, N)
    probs = {who: reader(s, answers, generator) for who, s in zip(READERS, (2, 1, 0), strict=True)}
    gate, comparisons = judge(probs, answers.tolist(), folds=1, resamples=200, seed=0)
    loss = {who: -np.mean([np.log(p[a]) for p, a in zip(rows, answers, strict=True)]) for who, rows in probs.items()}
    assert gate.difference == pytest.approx(loss["probe"] - loss["teacher_output"])
    for c in comparisons:
        assert c.split == "train"
        if c.metric == "nll":
            assert c.difference == pytest.approx(loss[c.a] - loss[c.b])
    assert {(c.a, c.b, c.metric) for c in comparisons} == {
        (a, b, metric)
        for a, b in (READERS[:2], (READERS[0], READERS[2]), READERS[1:])
        for metric in ("accuracy", "nll")
    }


@pytest.mark.parametrize(
    ("strengths", "words"),
    [
        ((3, 1, 0), ["beats the teacher's best output readout", "distil from the probe"]),
        ((0, 3, 0), ["output readout beats the student alone", "distil from the outputs"]),
        ((0, 0, 3), ["not surely better than the student alone", "train on the labels"]),
    ],
)
def test_the_reason_says_the_verdict_with_its_numbers(strengths: tuple[float, float, float], words: list[str]) -> None:
    gate = judged(*strengths)
    assert f"on {N} labelled rows, out-of-fold" in gate.reason
    for word in words:
        assert word in gate.reason
    quoted = f"log-loss {gate.difference:+.2f} [{gate.ci[0]:+.2f}, {gate.ci[1]:+.2f}]"
    accuracy = f"accuracy {100 * gate.accuracy_difference:+.0f} points"
    if gate.verdict != "logit-kd":  # whose first number is that of the words
        assert quoted in gate.reason and accuracy in gate.reason
    assert len(re.findall(r"log-loss [+-]\d+\.\d\d \[[+-]\d+\.\d\d, [+-]\d+\.\d\d\]", gate.reason)) == 2


def test_the_reason_for_labels_names_the_rival_that_the_probe_did_not_beat() -> None:
    generator = np.random.default_rng(2)
    answers = generator.integers(0, 3, N)
    # Right nine times in ten and too sure of it: the tenth costs 8 nats, so nothing is sure about the mean.
    said = np.where(np.arange(N) % 10 == 0, (answers + 1) % 3, answers)
    wild = list(softmax(8 * np.eye(3)[said], axis=1))
    probs = {"probe": reader(1.2, answers, generator), "teacher_output": wild, "student_alone": [np.full(3, 1 / 3)] * N}
    gate, comparisons = judge(probs, answers.tolist(), folds=1, resamples=300, seed=0)
    surely = {(c.a, c.b): c.ci[1] < 0 for c in comparisons if c.metric == "nll"}
    assert list(surely.values()) == [False, True, False]  # against words, against the student, words against student
    assert (gate.verdict, gate.versus) == ("labels", "teacher_output")
    assert "not surely better than the teacher's output (" in gate.reason
    assert f"{gate.difference:+.2f} [{gate.ci[0]:+.2f}, {gate.ci[1]:+.2f}]" in gate.reason


@pytest.mark.parametrize("sure", ["probe", "teacher_output", "student_alone"])
def test_who_leads_without_being_sure_is_named(sure: str) -> None:
    """The better one is right of all rows but for one in eight, on which it is so sure that nothing is proven."""
    generator = np.random.default_rng(2)
    answers = generator.integers(0, 3, N)
    picked = np.where(np.arange(N) % 8 == 0, (answers + 1) % 3, answers)
    probs = {who: [np.full(3, 1 / 3)] * N for who in READERS} | {sure: list(softmax(6 * np.eye(3)[picked], axis=1))}
    gate, comparisons = judge(probs, answers.tolist(), folds=1, resamples=300, seed=0)
    leads = {(c.a, c.b): c.difference for c in comparisons if c.metric == "nll"}
    assert gate.verdict == "labels" and min(leads.values(), key=abs) == 0
    said = {
        "probe": "the probe leads all the same, so that probe-kd is",
        "teacher_output": "logit-kd is the likelier winner",
    }
    if sure in said:
        assert said[sure] in gate.reason
    else:
        assert "leads all the same" not in gate.reason
    assert gate.reason.count(". ") == 0


def test_the_reason_says_how_many_rows_could_not_be_checked() -> None:
    generator = np.random.default_rng(4)
    answers = generator.integers(0, 3, N)
    probs = {who: reader(s, answers, generator) for who, s in zip(READERS, (3, 1, 0), strict=True)}
    gate, _ = judge(probs, answers.tolist(), folds=1, resamples=100, seed=0, unchecked=7)
    assert gate.n == N
    assert f"on {N} of {N + 7} labelled rows (the other 7 are the only ones of their label), out-of-fold" in gate.reason


def test_the_gate_is_a_json_object_with_the_contracts_keys() -> None:
    value = json.loads(json.dumps(judged(3, 0, 0).as_dict()))
    assert {"verdict", "difference", "ci", "reason"} <= set(value)
    assert len(value["ci"]) == 2 and value["verdict"] == "probe-kd"


def test_more_folds_ask_for_a_clearer_lead() -> None:
    generator = np.random.default_rng(3)
    answers = generator.integers(0, 3, N)
    probs = {who: reader(s, answers, generator) for who, s in zip(READERS, (2, 1, 0), strict=True)}
    one, five = (judge(probs, answers.tolist(), folds=folds, resamples=200, seed=0)[0] for folds in (1, 5))
    assert five.difference == one.difference
    assert np.diff(five.ci)[0] == pytest.approx(1.8**0.5 * np.diff(one.ci)[0])
    assert np.diff(five.accuracy_ci)[0] == pytest.approx(1.8**0.5 * np.diff(one.accuracy_ci)[0])


def test_variants_of_a_question_count_once() -> None:
    generator = np.random.default_rng(3)
    answers = generator.integers(0, 3, N)
    probs = {who: reader(s, answers, generator) for who, s in zip(READERS, (2, 1, 0), strict=True)}
    once, _ = judge(probs, answers.tolist(), folds=1, resamples=500, seed=0)
    copied = {who: [p for p in rows for _ in range(9)] for who, rows in probs.items()}
    many = answers.repeat(9).tolist()
    blind, _ = judge(copied, many, folds=1, resamples=500, seed=0)
    groups = [str(i) for i in range(N) for _ in range(9)]
    gate, comparisons = judge(copied, many, folds=1, resamples=500, seed=0, groups=groups)
    assert gate.n == 9 * N
    assert np.diff(gate.ci)[0] == pytest.approx(np.diff(once.ci)[0], rel=0.1)
    assert np.diff(blind.ci)[0] == pytest.approx(np.diff(once.ci)[0] / 3, rel=0.1)
    assert len(comparisons) == 6
