from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import fields, replace
from typing import Any

import numpy as np
import pytest
from scipy.optimize import minimize_scalar
from scipy.special import log_softmax

from probekd.probes.calibrate import Calibration
from probekd.probes.outputs import OutputReadout, fit_outputs, readout_names
from probekd.tasks.base import Example

Build = Callable[..., Any]
OUTSIDE = 1.7
FOLDS = 3


def examples_of(counts: list[int], answers: list[int]) -> list[Example]:
    return [
        Example(id=f"r{i:02}", question=f"{i}?", options=tuple("abcde"[:k]), answer=a)
        for i, (k, a) in enumerate(zip(counts, answers, strict=True))
    ]


def readout(name: str, *, prior: list[float], layout: str, temperature: float = 2.0) -> OutputReadout:
    return OutputReadout(
        name=name,
        layout=layout,  # type: ignore[arg-type]
        calibration=Calibration(scale=np.full(len(prior), 1 / temperature), shift=np.zeros(len(prior))),
        matrix=None,
        prior=np.array(prior),
        ids=(),
        answers=np.zeros(0, dtype=int),
        folds=np.zeros(0, dtype=int),
        honest=np.zeros((0, len(prior))),
        scores={},
    )


@pytest.fixture
def two_rows(fake_states: Build) -> Any:
    """Rows ``x`` with three options and ``y`` with two, in both layouts."""
    return fake_states(
        splits={"unlabelled": ["x", "y"]},
        columns={
            "listed": {
                "num_options": {"x": 3, "y": 2},
                "label_logits": {"x": [1.0, 4.0, -2.0], "y": [0.5, 0.0]},
            },
            "branched": {
                "num_options": {"x": 3, "y": 2},
                "option_loglik": {"x": [-6.0, -4.0, -9.0], "y": [-8.0, -2.0]},
                "option_tokens": {"x": [3, 1, 3], "y": [2, 4]},
                "option_bytes": {"x": [6, 8, 3], "y": [4, 1]},
            },
        },
    )


@pytest.fixture
def ragged(fake_states: Build) -> tuple[Any, list[Example], np.ndarray]:
    """Label logits of 30 rows with 3 to 5 options that know the answer, but like the first label by 3 nats."""
    generator = np.random.default_rng(0)
    counts = [3 + i % 3 for i in range(30)]
    examples = examples_of(counts, [int(generator.integers(k)) for k in counts])
    logits = {}
    for e in examples:
        x = generator.normal(size=len(e.options)) * 0.8
        x[e.answer] += 2.0
        x[0] += 3.0
        logits[e.id] = x.tolist()
    extra = {"p1": [1.0, 2.0, 3.0, 4.0], "p0": [0.0, 5.0, 1.0]}
    ids = [e.id for e in examples]
    states = fake_states(
        splits={"train": ids, "unlabelled": list(extra)},
        columns={
            "listed": {
                "num_options": {**{e.id: len(e.options) for e in examples}, "p1": 4, "p0": 3},
                "label_logits": {**logits, **extra},
            }
        },
    )
    return states, examples, np.arange(30) % FOLDS


def test_likelihood_is_taken_whole_by_token_and_by_byte(two_rows: Any) -> None:
    expected = {
        "sum": ([-6, -4, -9], [-8, -2]),
        "per token": ([-2, -4, -3], [-4, -0.5]),
        "per byte": ([-1, -0.5, -3], [-2, -2]),
    }
    for unit, rows in expected.items():
        found = readout(f"option_likelihood, {unit}", prior=[0.0] * 3, layout="branched").logits(two_rows, ["x", "y"])
        for row, by_hand in zip(found, rows, strict=True):
            assert row.tolist() == pytest.approx([v / 2.0 for v in by_hand]), unit


def test_label_logits_lose_their_prior_and_are_divided_by_the_temperature(two_rows: Any) -> None:
    found = readout("label_token, prior removed", prior=[0.5, -1.0, -3.0], layout="listed").logits(two_rows, ["y", "x"])
    assert [row.tolist() for row in found] == [[0.0, 0.5], [0.25, 2.5, 0.5]]


def test_label_prior_says_the_same_of_every_row(two_rows: Any) -> None:
    found = readout("label_prior", prior=[-3.0, -1.0, 0.0], layout="listed", temperature=1.0).logits(
        two_rows, ["x", "y"]
    )
    assert [row.tolist() for row in found] == [[3.0, 1.0, 0.0], [3.0, 1.0]]


def test_a_pool_row_may_have_more_options_than_any_labelled_row(two_rows: Any) -> None:
    for name, layout in (("label_token", "listed"), ("option_likelihood, sum", "branched"), ("label_prior", "listed")):
        found = readout(name, prior=[0.0, 0.0], layout=layout).logits(two_rows, ["x", "y"])
        assert [len(row) for row in found] == [3, 2], name


def test_readouts_are_those_that_were_recorded(two_rows: Any) -> None:
    likelihoods = [f"option_likelihood, {unit}" for unit in ("sum", "per token", "per byte")]
    assert readout_names(two_rows) == ["label_token", *likelihoods]
    assert readout_names(replace(two_rows, columns={"branched": two_rows.columns["branched"]})) == likelihoods
    assert readout_names(replace(two_rows, columns={"listed": {"num_options": {}}})) == ["label_prior"]


def test_the_prior_is_the_mean_log_probability_over_the_rows_that_have_the_label(
    ragged: tuple[Any, list[Example], np.ndarray],
) -> None:
    states, examples, folds = ragged
    fitted = fit_outputs(states, examples, folds, kind="multiple_choice")
    assert fitted.name == "label_token, prior removed"
    assert fitted.layout == "listed"
    logp = [log_softmax(states.columns["listed"]["label_logits"][e.id]) for e in examples]
    for label in range(5):
        assert fitted.prior[label] == pytest.approx(np.mean([row[label] for row in logp if len(row) > label]))
    assert fitted.prior[0] > fitted.prior[1:].max() + 1


def test_removing_the_prior_pays_and_both_are_scored(ragged: tuple[Any, list[Example], np.ndarray]) -> None:
    fitted = fit_outputs(*ragged, kind="multiple_choice")
    assert set(fitted.scores) == {"label_token", "label_token, prior removed"}
    assert fitted.scores["label_token, prior removed"]["nll"] < fitted.scores["label_token"]["nll"] - 0.1


@pytest.mark.usefixtures("one_temperature")
def test_scores_and_temperature_are_the_best_that_scipy_finds(
    ragged: tuple[Any, list[Example], np.ndarray], monkeypatch: pytest.MonkeyPatch
) -> None:
    states, examples, folds = ragged
    monkeypatch.setattr("probekd.probes.choose.flattery", lambda *_: OUTSIDE)
    fitted = fit_outputs(states, examples, folds, kind="multiple_choice")
    raw = [np.array(states.columns["listed"]["label_logits"][e.id]) - fitted.prior[: len(e.options)] for e in examples]

    def loss(t: float) -> float:
        return float(-np.mean([log_softmax(x / np.exp(t))[e.answer] for x, e in zip(raw, examples, strict=True)]))

    def with_an_even_row(t: float) -> float:
        return loss(t) - float(np.mean([log_softmax(x / np.exp(t)).mean() for x in raw])) / len(raw)

    best = minimize_scalar(with_an_even_row, bounds=(-4, 4), method="bounded", options={"xatol": 1e-9})
    assert fitted.scores[fitted.name]["nll"] == pytest.approx(loss(best.x))
    assert fitted.calibration.temperature == pytest.approx(np.exp(best.x) * OUTSIDE, rel=1e-4)


def test_honest_logits_of_a_fold_are_calibrated_by_the_others(ragged: tuple[Any, list[Example], np.ndarray]) -> None:
    states, examples, folds = ragged
    fitted = fit_outputs(states, examples, folds, kind="multiple_choice")
    for f in range(FOLDS):
        turned = [replace(e, answer=0) if g == f else e for e, g in zip(examples, folds, strict=True)]
        other = fit_outputs(states, turned, folds, kind="multiple_choice")
        np.testing.assert_allclose(other.honest[folds == f], fitted.honest[folds == f])
        assert not np.allclose(other.honest[folds != f], fitted.honest[folds != f])
    assert np.isfinite(fitted.honest).sum(1).tolist() == [len(e.options) for e in examples]


def test_targets_are_honest_for_labelled_rows_and_plain_for_the_pool(
    ragged: tuple[Any, list[Example], np.ndarray],
) -> None:
    states, examples, folds = ragged
    fitted = fit_outputs(states, examples, folds, kind="multiple_choice")
    targets = fitted.targets(states)
    assert targets.ids == (*sorted(e.id for e in examples), "p0", "p1")
    assert targets.sources == ("oof",) * 30 + ("pooled",) * 2
    assert targets.folds == (*folds.tolist(), -1, -1)
    for i, e in enumerate(examples):
        assert targets.logits[i].tolist() == fitted.honest[i][: len(e.options)].tolist()
    np.testing.assert_allclose(targets.logits[30], fitted.calibration.apply(np.array([0, 5, 1]) - fitted.prior[:3]))
    np.testing.assert_allclose(targets.logits[31], fitted.calibration.apply(np.array([1, 2, 3, 4]) - fitted.prior[:4]))


def test_the_best_likelihood_is_found(fake_states: Build) -> None:
    generator = np.random.default_rng(1)
    examples = examples_of([4] * 36, [int(a) for a in generator.integers(4, size=36)])
    tokens = {e.id: generator.integers(1, 12, 4) for e in examples}
    # By token the gold option stands out; the sums are drowned in length.
    values = {e.id: (-3 + 1.5 * np.eye(4)[e.answer] + generator.normal(size=4) * 0.4) * tokens[e.id] for e in examples}
    states = fake_states(
        splits={"train": [e.id for e in examples]},
        columns={
            "branched": {
                "num_options": {e.id: 4 for e in examples},
                "option_loglik": {i: v.tolist() for i, v in values.items()},
                "option_tokens": {i: v.tolist() for i, v in tokens.items()},
                "option_bytes": {i: generator.integers(1, 60, 4).tolist() for i in values},
            }
        },
    )
    fitted = fit_outputs(states, examples, np.arange(36) % FOLDS, kind="multiple_choice")
    assert (fitted.name, fitted.layout) == ("option_likelihood, per token", "branched")
    by_hand = fitted.calibration.apply(values["r03"] / tokens["r03"])
    np.testing.assert_allclose(fitted.logits(states, ["r03"])[0], by_hand)


@pytest.mark.usefixtures("one_temperature")
def test_a_teacher_without_words_falls_back_on_the_label_prior(fake_states: Build) -> None:
    answers = [0] * 12 + [1] * 6 + [2] * 3
    folds = np.array([0, 1, 2] * 7)
    examples = examples_of([3] * 21, answers)
    states = fake_states(
        splits={"train": [e.id for e in examples], "unlabelled": ["p"]},
        columns={"listed": {"num_options": {**{e.id: 3 for e in examples}, "p": 3}}},
    )
    fitted = fit_outputs(states, examples, folds, kind="multiple_choice")
    assert (fitted.name, fitted.layout, set(fitted.scores)) == ("label_prior", "listed", {"label_prior"})
    pooled = fitted.logits(states, ["p"])[0] * fitted.calibration.temperature
    np.testing.assert_allclose(pooled, np.log([13, 7, 4]))
    # A row's own fold does not count: 8, 4 and 2 of each label are left, and one is added.
    for row in fitted.honest:
        np.testing.assert_allclose((row[0] - row[1]) / (row[1] - row[2]), np.log(9 / 5) / np.log(5 / 3))


def test_json_gives_back_the_same_readout(ragged: tuple[Any, list[Example], np.ndarray]) -> None:
    states, examples, folds = ragged
    fitted = fit_outputs(states, examples, folds, kind="multiple_choice")
    again = OutputReadout.from_json(json.loads(json.dumps(fitted.to_json(), allow_nan=False)))
    for f in fields(OutputReadout):
        if f.name == "calibration":
            np.testing.assert_equal(vars(again.calibration), vars(fitted.calibration))
            continue
        np.testing.assert_equal(getattr(again, f.name), getattr(fitted, f.name), err_msg=f.name)
    assert again.ids == fitted.ids
    for a, b in zip(again.logits(states, ["p0", "p1"]), fitted.logits(states, ["p0", "p1"]), strict=True):
        np.testing.assert_array_equal(a, b)


def test_out_of_fold_distributions_have_the_rows_own_options(ragged: tuple[Any, list[Example], np.ndarray]) -> None:
    _, examples, _ = ragged
    probs = fit_outputs(*ragged, kind="multiple_choice").out_of_fold
    assert [len(p) for p in probs] == [len(e.options) for e in examples]
    assert [p.sum() for p in probs] == pytest.approx([1.0] * 30)


def test_an_affine_map_undoes_mixed_labels_where_a_temperature_cannot(fake_states: Build) -> None:
    generator = np.random.default_rng(2)
    answers = generator.integers(3, size=90)
    examples = examples_of([3] * 90, answers.tolist())
    # The teacher knows, and says it in the next label's word.
    values = {
        e.id: (3 * np.eye(3)[(a + 1) % 3] + generator.normal(size=3)).tolist()
        for e, a in zip(examples, answers, strict=True)
    }
    states = fake_states(
        splits={"train": [e.id for e in examples]},
        columns={"listed": {"num_options": {e.id: 3 for e in examples}, "label_logits": values}},
    )
    # Of multiple choice, other rows may ask about other things, and have more or fewer of them.
    asked = fit_outputs(states, examples, np.arange(90) % FOLDS, kind="multiple_choice")
    assert not any("affine" in name for name in asked.scores)
    fitted = fit_outputs(states, examples, np.arange(90) % FOLDS, kind="classification")
    assert fitted.name.startswith("label_token, affine")
    assert fitted.scores["label_token"]["accuracy"] < 0.2
    assert fitted.scores[fitted.name]["accuracy"] > 0.85
    said = [int(x.argmax()) for x in fitted.logits(states, [e.id for e in examples])]
    assert np.mean(said == answers) > 0.85
    again = OutputReadout.from_json(json.loads(json.dumps(fitted.to_json(), allow_nan=False)))
    np.testing.assert_allclose(again.logits(states, ["r03"])[0], fitted.logits(states, ["r03"])[0])


def test_rows_of_other_lengths_are_read_where_all_labelled_rows_have_as_many(fake_states: Build) -> None:
    generator = np.random.default_rng(3)
    answers = generator.integers(4, size=60)
    examples = [
        Example(id=f"r{i:02}", question=f"{i}?", options=tuple(f"{i} {c}" for c in "abcd"), answer=int(a))
        for i, a in enumerate(answers)
    ]
    # Letters that are said one too far: an affine map would mend it, and would have nothing for a fifth letter.
    values = {
        e.id: (3 * np.eye(4)[(a + 1) % 4] + generator.normal(size=4)).tolist()
        for e, a in zip(examples, answers, strict=True)
    }
    counts = {**{e.id: 4 for e in examples}, "three": 3, "five": 5}
    states = fake_states(
        splits={"train": [e.id for e in examples], "unlabelled": ["three", "five"]},
        columns={
            "listed": {
                "num_options": counts,
                "label_logits": {**values, "three": [0.0, 1.0, 2.0], "five": [0.0, 1.0, 2.0, 3.0, 4.0]},
            }
        },
    )
    fitted = fit_outputs(states, examples, np.arange(60) % FOLDS, kind="multiple_choice")
    assert fitted.matrix is None
    three, five = fitted.logits(states, ["three", "five"])
    assert len(three) == 3 and len(five) == 5 and np.isfinite([*three, *five]).all()


def test_with_no_care_the_readout_is_what_the_teacher_says(ragged: tuple[Any, list[Example], np.ndarray]) -> None:
    states, examples, folds = ragged
    raw = fit_outputs(states, examples, folds, care="raw", kind="multiple_choice")
    assert (raw.name, set(raw.scores), raw.calibration.temperature) == ("label_token", {"label_token"}, 1.0)
    for i, e in enumerate(examples):
        assert raw.honest[i][: len(e.options)].tolist() == states.columns["listed"]["label_logits"][e.id]
    assert raw.logits(states, ["p1"])[0].tolist() == [1.0, 2.0, 3.0, 4.0]
    # Answers decide nothing here: there is one readout.
    turned = [replace(e, answer=0) for e in examples]
    np.testing.assert_array_equal(
        fit_outputs(states, turned, folds, care="raw", kind="multiple_choice").honest, raw.honest
    )


def test_debiased_readouts_lose_their_prior_and_get_a_temperature(
    ragged: tuple[Any, list[Example], np.ndarray],
) -> None:
    states, examples, folds = ragged
    debiased = fit_outputs(states, examples, folds, care="debiased", kind="multiple_choice")
    best = fit_outputs(states, examples, folds, kind="multiple_choice")
    assert set(debiased.scores) == {"label_token, prior removed"}
    np.testing.assert_allclose(debiased.honest, best.honest)  # which is the best of all here


def test_the_raw_readout_of_a_fold_is_chosen_by_the_others(two_rows: Any, fake_states: Build) -> None:
    generator = np.random.default_rng(4)
    examples = examples_of([3] * 30, [int(a) for a in generator.integers(3, size=30)])
    folds = np.arange(30) % FOLDS
    ids = [e.id for e in examples]
    # Likelihoods know the answer in the rows of fold 0, letters in the others.
    knows = {e.id: (4.0 * np.eye(3)[e.answer]).tolist() for e in examples}
    wrong = {e.id: (-4.0 * np.eye(3)[e.answer]).tolist() for e in examples}
    first = {i for i, f in zip(ids, folds, strict=True) if f == 0}
    counts = dict.fromkeys(ids, 3)
    states = fake_states(
        splits={"train": ids},
        columns={
            "listed": {"num_options": counts, "label_logits": {i: (wrong if i in first else knows)[i] for i in ids}},
            "branched": {
                "num_options": counts,
                "option_loglik": {i: (knows if i in first else wrong)[i] for i in ids},
                "option_tokens": {i: [1, 1, 1] for i in ids},
                "option_bytes": {i: [1, 1, 1] for i in ids},
            },
        },
    )
    raw = fit_outputs(states, examples, folds, care="raw", kind="multiple_choice")
    assert raw.name == "label_token"
    for i, e in enumerate(examples):  # two folds of three prefer letters, so fold 0 is read by them, and wrongly
        assert raw.honest[i].tolist() == (wrong if e.id in first else knows)[e.id]
