"""Views of a teacher whose states and words are planted."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from probekd.config import ProbeConfig
from probekd.methods import RECIPES, TEACHER_VIEWS, Evidence, TeacherReading, cares_of, views_of
from probekd.probes.fit import fit_probes
from probekd.probes.outputs import fit_outputs
from probekd.tasks.base import Example, Task

LABELS = ("red", "green", "blue")
N, POOL, WIDTH = 60, 60, 40


@pytest.fixture(params=["classification", "multiple_choice"])
def reading(request: pytest.FixtureRequest, fake_states: Callable[..., Any]) -> tuple[TeacherReading, np.ndarray]:
    """States wider than there are labels, so that a probe can learn its rows by heart; words that know less."""
    draw = np.random.default_rng(0)
    classes = request.param == "classification"
    counts = [3 if classes else 2 + i % 3 for i in range(N + POOL)]
    answers = draw.integers(counts)
    rows = [
        Example(
            id=f"r{i:02}",
            question=f"{i}?",
            options=LABELS if classes else tuple(f"{i}{c}" for c in "abcd"[:k]),
            answer=int(a),
        )
        for i, (k, a) in enumerate(zip(counts, answers, strict=True))
    ]
    values, words = {}, {}
    for e in rows:
        x = draw.normal(size=WIDTH if classes else (len(e.options), WIDTH))
        x[e.answer if classes else (e.answer, 0)] += 2.6  # type: ignore[index]
        values[e.id] = x
        words[e.id] = (draw.normal(size=len(e.options)) + 1.0 * np.eye(len(e.options))[e.answer]).tolist()
    number = {e.id: len(e.options) for e in rows}
    columns = {"listed": {"num_options": number, "label_logits": words}}
    where = ("listed", "answer", 1)
    if not classes:
        ones = {i: [1] * k for i, k in number.items()}
        columns["branched"] = {
            "num_options": number,
            "option_loglik": words,
            "option_tokens": ones,
            "option_bytes": ones,
        }
        where = ("branched", "option_mean", 1)
    states = fake_states(splits={"train": [e.id for e in rows]}, values={where: values}, columns=columns)
    pool = tuple(replace(e, answer=None) for e in rows[N:])
    task = Task(
        name="t",
        kind=request.param,
        splits={"train": tuple(rows[:N]), "unlabelled": pool},
        labels=LABELS if classes else (),
    )
    config = ProbeConfig(folds=3, l2=(0.1, 1.0), windows=(1,), stack=False)
    probe = fit_probes(states, replace(task, splits={"train": task.splits["train"]}), config=config)
    by_id = {e.id: e for e in rows}
    examples = [by_id[i] for i in probe.ids]
    cares = ("raw", "debiased", "calibrated")
    outputs = {c: fit_outputs(states, examples, probe.folds, kind=task.kind, care=c) for c in cares}
    made = TeacherReading(task=task, states=states, probe=probe, outputs=outputs, config=config, seed=0)  # type: ignore[arg-type]
    return made, answers[N:]


def hits(logits: np.ndarray, answers: np.ndarray) -> float:
    return float((logits.argmax(1) == answers).mean())


def test_every_view_has_each_row_over_its_own_options(reading: tuple[TeacherReading, np.ndarray]) -> None:
    made, _ = reading
    for name in TEACHER_VIEWS:
        view = made.view(name)
        assert np.isfinite(view.honest).sum(1).tolist() == [len(e.options) for e in made.labelled], name
        assert np.isfinite(view.pool).sum(1).tolist() == [len(e.options) for e in made.pool], name


def test_the_probe_says_what_it_says_of_any_row(reading: tuple[TeacherReading, np.ndarray]) -> None:
    made, answers = reading
    view = made.view("probe")
    assert tuple(e.id for e in made.labelled) == made.probe.ids
    np.testing.assert_array_equal(view.honest[:, : made.probe.honest.shape[1]], made.probe.honest)
    said = made.probe.logits(made.states, [e.id for e in made.pool])
    for row, z in zip(view.pool, said, strict=True):
        np.testing.assert_allclose(row[: len(z)], z)
    assert hits(view.pool, answers) > 0.6


def test_models_that_saw_a_row_know_its_answer(reading: tuple[TeacherReading, np.ndarray]) -> None:
    made, _ = reading
    gold = made.probe.answers
    assert hits(made.view("probe_in_sample").honest, gold) > hits(made.view("probe").honest, gold) + 0.1


def test_a_probe_of_shuffled_labels_knows_nothing(reading: tuple[TeacherReading, np.ndarray]) -> None:
    made, answers = reading
    chance = np.mean([1 / len(e.options) for e in made.pool])
    found = [hits(replace(made, seed=s).view("probe_shuffled").pool, answers) for s in range(6)]
    assert np.mean(found) < chance + 0.12 < hits(made.view("probe").pool, answers)


def test_the_words_are_those_of_the_readouts(reading: tuple[TeacherReading, np.ndarray]) -> None:
    made, _ = reading
    for care, readout in made.outputs.items():
        view = made.view(f"output_{care}")  # type: ignore[arg-type]
        for row, z in zip(view.pool, readout.logits(made.states, [e.id for e in made.pool]), strict=True):
            np.testing.assert_allclose(row[: len(z)], z)


def test_without_a_pool_only_labelled_rows_are_told(reading: tuple[TeacherReading, np.ndarray]) -> None:
    made, _ = reading
    bare = replace(made, task=replace(made.task, splits={"train": made.task.splits["train"]}))
    views = {name: bare.view(name) for name in TEACHER_VIEWS}
    evidence = Evidence(labelled=bare.labelled, pool=(), folds=made.probe.folds, views=views)
    for name in ("probe-kd", "logit-kd", "probe-kd-in-sample"):
        assert len(RECIPES[name].make(evidence)) == N  # type: ignore[index]


def test_what_methods_need_is_named_once() -> None:
    assert views_of(("blend-kd", "probe-kd", "labels")) == ("probe", "output_calibrated", "student_alone")
    assert cares_of(views_of(("logit-kd", "blend-kd", "self-train"))) == ("raw", "calibrated")
    assert cares_of(views_of(("probe-kd", "labels"))) == ()
