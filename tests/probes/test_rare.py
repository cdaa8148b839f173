"""Few labels and many classes, from folds to targets: forty labels of twenty classes, some with one row, some with none."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from scipy.special import softmax

from probekd.config import ProbeConfig
from probekd.probes.alone import fit_alone
from probekd.probes.controls import fit_shuffled, label_prior
from probekd.probes.curve import learning_curve
from probekd.probes.fit import fit_probes, soft_labels
from probekd.probes.outputs import OutputReadout, fit_outputs
from probekd.probes.probe import Probe
from probekd.tasks.base import Example, Task

LABELS = tuple(f"label {i:02}" for i in range(20))
# Ten classes with three rows, one with four, six with one, and three (17, 18 and 19) with none.
COUNTS = [3] * 10 + [4] + [1] * 6
WIDTH = 22
CONFIG = ProbeConfig(folds=3, l2=(0.03, 0.3), windows=(1,), tolerance=1e-4)
ONCE, NEVER = range(11, 17), range(17, 20)

Build = Callable[..., Any]


def task_of(answers: list[int], pool: int = 60) -> Task:
    train = tuple(Example(id=f"r{i:02}", question=f"{i}?", options=LABELS, answer=a) for i, a in enumerate(answers))
    rest = tuple(Example(id=f"p{i:02}", question=f"pool {i}?", options=LABELS) for i in range(pool))
    return Task(name="rare", kind="classification", splits={"train": train, "unlabelled": rest}, labels=LABELS)


def states_of(build: Build, task: Task, *, signal: float = 8.0, words: bool = True) -> Any:
    """Two depths, of which the second knows the answer of the train rows and, of pool row i, that it is i % 20."""
    draw = np.random.default_rng(0)
    gold = {
        e.id: i % 20 if e.answer is None else e.answer
        for split in ("train", "unlabelled")
        for i, e in enumerate(task.rows(split))
    }
    values = {
        ("listed", "answer", depth): {
            i: (draw.normal(size=WIDTH) + depth * signal * np.eye(20, WIDTH)[a]).astype(np.float32)
            for i, a in gold.items()
        }
        for depth in (0, 1)
    }
    columns: dict[str, Any] = {"num_options": dict.fromkeys(gold, 20)}
    if words:
        columns["label_logits"] = {i: (draw.normal(size=20) + 2 * np.eye(20)[a]).tolist() for i, a in gold.items()}
    return build(
        splits={name: [e.id for e in rows] for name, rows in task.splits.items()},
        values=values,
        columns={"listed": columns},
    )


@pytest.fixture
def task() -> Task:
    return task_of(np.repeat(np.arange(len(COUNTS)), COUNTS).tolist())


@pytest.fixture(params=[False, True], ids=["single", "stack"])
def config(request: pytest.FixtureRequest) -> ProbeConfig:
    return CONFIG.model_copy(update={"stack": request.param})


@pytest.fixture
def made(config: ProbeConfig, task: Task, fake_states: Build) -> tuple[Task, Any, Probe]:
    states = states_of(fake_states, task)
    return task, states, fit_probes(states, task, config=config)


def examples_of(task: Task, probe: Probe) -> list[Example]:
    by_id = {e.id: e for e in task.rows("train")}
    return [by_id[i] for i in probe.ids]


def test_only_rows_of_their_class_are_learned_from_and_not_scored(made: tuple[Task, Any, Probe]) -> None:
    _, _, probe = made
    assert len(probe.ids) == 40 and len(probe.honest) == len(probe.uncalibrated) == probe.scores["n"] == 34
    assert sorted(probe.answers[~probe.scored].tolist()) == list(ONCE)
    assert Counter(probe.scored_answers.tolist()) == Counter({**dict.fromkeys(range(10), 3), 10: 4})
    assert probe.scores["accuracy"] > 0.7


def test_targets_are_gold_for_only_rows_and_honest_for_the_rest(made: tuple[Task, Any, Probe], tmp_path: Path) -> None:
    task, states, probe = made
    targets = soft_labels(probe, states)
    answers = {e.id: e.answer for e in task.rows("train")}
    honest = iter(probe.honest)
    for row_id, source, fold, probs, logits in zip(
        targets.ids, targets.sources, targets.folds, targets.probs, targets.logits, strict=True
    ):
        assert len(probs) == 20 and probs.sum() == pytest.approx(1)
        if row_id.startswith("p"):
            assert (source, fold) == ("pooled", -1)
        elif answers[row_id] in ONCE:
            assert (source, fold) == ("gold", -1) and probs.tolist() == np.eye(20)[answers[row_id]].tolist()
        else:
            assert source == "oof" and fold >= 0 and logits.tolist() == next(honest).tolist()
    targets.save(tmp_path / "targets.parquet")


def test_classes_without_a_row_get_little_and_classes_with_one_are_found(made: tuple[Task, Any, Probe]) -> None:
    _, states, probe = made
    pool = states.ids("listed", "unlabelled")
    p = np.stack([softmax(x) for x in probe.logits(states, pool)])
    gold = np.arange(60) % 20
    # 40 rows, of which six were the only ones of their class: 1/42 for each of three.
    np.testing.assert_allclose(p[:, NEVER], 1 / 42, rtol=1e-6)
    known = gold < 17
    assert (p.argmax(1) == gold)[np.isin(gold, ONCE)].mean() > 0.5
    assert (p.argmax(1) == gold)[known].mean() > 0.7
    honest = softmax(probe.honest, axis=1)
    sizes = np.array([(probe.folds != f).sum() for f in probe.folds[probe.scored]])
    np.testing.assert_allclose(honest[:, NEVER], np.repeat(1 / (sizes + 2)[:, None], 3, 1), rtol=1e-6)


def test_a_saved_probe_says_the_same(made: tuple[Task, Any, Probe], tmp_path: Path) -> None:
    _, states, probe = made
    probe.save(tmp_path)
    again = Probe.load(tmp_path)
    pool = states.ids("listed", "unlabelled")
    np.testing.assert_array_equal(np.stack(again.logits(states, pool)), np.stack(probe.logits(states, pool)))
    assert again.scores == probe.scores
    meta = json.loads((tmp_path / "probe.json").read_text())
    assert (meta["labelled"], meta["scored"], meta["folds"]) == (40, 34, 3)


def test_row_order_plays_no_part(made: tuple[Task, Any, Probe], config: ProbeConfig) -> None:
    task, states, probe = made
    mixed = tuple(task.splits["train"][i] for i in np.random.default_rng(1).permutation(40))
    again = fit_probes(states, replace(task, splits={**task.splits, "train": mixed}), config=config)
    assert again.describe() == probe.describe() and again.words == probe.words
    np.testing.assert_array_equal(again.honest, probe.honest)
    assert again.ids == probe.ids and again.folds.tolist() == probe.folds.tolist()


def test_the_word_on_a_row_does_not_depend_on_its_folds_labels(
    task: Task, fake_states: Build, monkeypatch: pytest.MonkeyPatch
) -> None:
    states = states_of(fake_states, task)
    before = fit_probes(states, task, config=CONFIG)
    fold_of = dict(zip(before.ids, before.folds.tolist(), strict=True))
    monkeypatch.setattr(
        "probekd.probes.fit.assign_folds", lambda rows, *_, **__: np.array([fold_of[e.id] for e in rows])
    )
    train = tuple(replace(e, answer=19) if fold_of[e.id] == 1 else e for e in task.splits["train"])
    after = fit_probes(states, replace(task, splits={**task.splits, "train": train}), config=CONFIG)
    held = before.folds[before.scored] == 1
    np.testing.assert_allclose(after.honest[held], before.honest[held], rtol=1e-3, atol=1e-3)
    assert np.abs(after.honest[~held] - before.honest[~held]).max() > 0.1


def test_random_labels_are_read_by_nothing(fake_states: Build) -> None:
    hits = []
    for seed in range(12):
        answers = np.random.default_rng(seed).permutation(np.repeat(np.arange(len(COUNTS)), COUNTS)).tolist()
        task = task_of(answers, pool=0)
        probe = fit_probes(states_of(fake_states, task, signal=0, words=False), task, config=CONFIG)
        hits.append(probe.scores["accuracy"])
    assert np.mean(hits) < 1 / 11 + 3 * np.sqrt(0.1 / (34 * len(hits)))


@pytest.mark.parametrize("family", ["ridge", "mass_mean", "low_rank", "mlp"])
def test_every_family_serves(family: str, task: Task, fake_states: Build) -> None:
    states = states_of(fake_states, task)
    probe = fit_probes(states, task, config=CONFIG.model_copy(update={"families": (family,), "stack": False}))
    p = np.stack([softmax(x) for x in probe.logits(states, states.ids("listed", "unlabelled"))])
    np.testing.assert_allclose(p[:, NEVER], 1 / 42, rtol=1e-5)
    assert np.isfinite(probe.honest).all() and probe.scores["n"] == 34


def test_repeats_serve(task: Task, fake_states: Build) -> None:
    states = states_of(fake_states, task)
    probe = fit_probes(states, task, config=CONFIG.model_copy(update={"repeats": 2, "stack": False}))
    p = np.stack([softmax(x) for x in probe.logits(states, states.ids("listed", "unlabelled"))])
    np.testing.assert_allclose(p[:, NEVER], 1 / 42, rtol=1e-5)
    assert len(probe.honest) == 34


# ---- what stands beside the probe ---------------------------------------------------------------------------------


def test_controls_and_curve_score_the_same_rows(made: tuple[Task, Any, Probe]) -> None:
    task, states, probe = made
    examples = examples_of(task, probe)
    x = states.read("listed", "answer", 1, probe.ids)
    alone = fit_alone(x[:, None], examples, probe.folds, CONFIG)
    assert alone.honest.shape == (34, 20) and np.isfinite(alone.honest).all()
    pool = [e for e in task.rows("unlabelled")]
    said = np.stack(alone.logits(states.read("listed", "answer", 1, [e.id for e in pool])[:, None], pool))
    np.testing.assert_allclose(softmax(said, axis=1)[:, NEVER], 1 / 42, rtol=1e-5)  # as the probe's
    assert label_prior(probe.answers, examples, probe.folds)["n"] == 34
    shuffled = fit_shuffled(probe, states, examples, config=CONFIG, seed=0)
    assert shuffled["n"] == 34 and shuffled["accuracy"] < 0.4 < probe.scores["accuracy"]
    curve = learning_curve(probe, states, examples, config=CONFIG, seed=0)
    assert [point.labels for point in curve.points] == [10, 20, 40]
    assert all(np.isfinite([point.nll, point.accuracy]).all() for point in curve.points)
    assert curve.points[-1].nll < curve.points[0].nll
    # A quarter of the labels has ten rows of ten classes: whoever saw none of a class says so, and loses no fortune.
    assert curve.points[0].nll < 6


def test_output_readouts_serve(task: Task, fake_states: Build) -> None:
    states = states_of(fake_states, task)
    examples = task.rows("train")
    folds = fit_probes(states, task, config=CONFIG).folds
    fitted = fit_outputs(states, examples, folds, kind="classification")
    assert len(fitted.honest) == 34 and all(s["n"] == 34 for s in fitted.scores.values())
    targets = fitted.targets(states)
    assert Counter(targets.sources) == {"oof": 34, "gold": 6, "pooled": 60}
    assert {i for i, s in zip(targets.ids, targets.sources, strict=True) if s == "gold"} == {
        e.id for e in examples if e.answer in ONCE
    }


def test_an_affine_map_says_little_of_labels_that_it_never_saw(fake_states: Build) -> None:
    task = task_of(np.repeat(np.arange(17), 6).tolist())
    states = states_of(fake_states, task)
    # The teacher says the next label's word, so that only a map can read it.
    turned = {i: np.roll(3 * np.array(x), 1).tolist() for i, x in states.columns["listed"]["label_logits"].items()}
    states.columns["listed"]["label_logits"].update(turned)
    fitted = fit_outputs(states, task.rows("train"), np.arange(102) % 6 % 3, kind="classification")
    assert fitted.name.startswith("label_token, affine")
    again = OutputReadout.from_json(json.loads(json.dumps(fitted.to_json(), allow_nan=False)))
    for one in (fitted, again):
        p = np.stack([softmax(x) for x in one.logits(states, states.ids("listed", "unlabelled"))])
        # No row was the only one of its class, so three classes share what one would get.
        np.testing.assert_allclose(p[:, NEVER].sum(1), 1 / 104, rtol=1e-6)
        assert (p.argmax(1) == np.arange(60) % 20)[np.arange(60) % 20 < 17].mean() > 0.2
    honest = softmax(fitted.honest, axis=1)
    np.testing.assert_allclose(honest[:, NEVER].sum(1), 1 / 70, rtol=1e-6)
