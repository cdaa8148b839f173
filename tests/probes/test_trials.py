"""Windows, stacks, repeats and saving: whole fits on states in memory."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from probekd.config import ProbeConfig
from probekd.probes.choose import row_losses
from probekd.probes.fit import fit_probes, presence
from probekd.probes.probe import Probe
from probekd.probes.reader import Reader
from probekd.probes.trials import Plan, Trials, plan, run_trials
from probekd.progress import Silent
from probekd.tasks.base import Example, Task

Build = Callable[..., Any]
N, DEPTHS = 60, 4
CONFIG = ProbeConfig(folds=3, l2=(0.1, 0.3), windows=(1, 3), stack=False, tolerance=1e-4)


def task_of(extra: tuple[str, ...] = (), n: int = N) -> Task:
    def row(i: int, split: str) -> Example:
        return Example(
            id=f"{split}-{i:02}", question=f"{split} {i}?", options=tuple("abc"), answer=(i * 7 + i // 3) % 3
        )

    splits = {"train": tuple(row(i, "train") for i in range(n)), "test": tuple(row(i, "test") for i in range(6))}
    splits |= {name: tuple(row(i, name) for i in range(9)) for name in extra}
    return Task(name="made", kind="multiple_choice", splits=splits, labels=())


def states_of(task: Task, build: Build, *, signal: float = 0.8) -> Any:
    """Two layouts whose states err apart, each with a weak signal at every depth; option states in one of them."""
    values: dict[tuple[str, str, int], dict[str, np.ndarray]] = {}
    rows = list(task.rows())
    for number, (layout, position) in enumerate((("listed", "answer"), ("branched", "option_end"))):
        for depth in range(DEPTHS):
            held = values[layout, position, depth] = {}
            for e in rows:
                draw = np.random.default_rng([number, depth, *e.id.encode()])
                x = draw.normal(size=(3, 6))
                x[e.answer or 0, :2] += signal
                held[e.id] = (x[:, :4].ravel() if position == "answer" else x).astype(np.float32)
    column = {"num_options": {e.id: 3 for e in rows}}
    return build(
        splits={name: [e.id for e in members] for name, members in task.splits.items()},
        values=values,
        columns={"listed": column, "branched": column},
    )


@pytest.fixture
def tried(fake_states: Build) -> tuple[Plan, Trials]:
    task = task_of()
    states = states_of(task, fake_states)
    examples = task.splits["train"]
    what = plan(states, CONFIG, classes=3)
    answers = np.array([e.answer for e in examples])
    folds = np.arange(N) % 3
    ids = [e.id for e in examples]
    return what, run_trials(states, ids, answers, presence(examples, 3), folds, what, {}, CONFIG, Silent())


def test_a_window_is_the_mean_of_its_depths_cut_at_the_ends(tried: tuple[Plan, Trials]) -> None:
    what, trials = tried
    assert len(what.readers) == 2 * 2 * DEPTHS * 2
    for reader in what.readers:
        near = {1: [reader.depth], 3: [d for d in range(reader.depth - 1, reader.depth + 2) if 0 <= d < DEPTHS]}
        one = [trials.predictions(replace(reader, depth=d, window=1)) for d in near[reader.window]]
        found = trials.predictions(reader)
        np.testing.assert_allclose(found.outer, np.mean([o.outer for o in one], 0), rtol=1e-5, atol=1e-5)
        np.testing.assert_allclose(found.inner, np.mean([o.inner for o in one], 0), rtol=1e-5, atol=1e-5)
        np.testing.assert_allclose(trials.outer(reader), found.outer[0], rtol=1e-5, atol=1e-5)


def test_losses_lie_in_the_order_of_the_readers(tried: tuple[Plan, Trials]) -> None:
    what, trials = tried
    assert trials.losses.outer.shape == (len(what.readers), N)
    for number, reader in enumerate(what.readers):
        own = row_losses(trials.predictions(reader), trials.answers, trials.folds)
        np.testing.assert_allclose(trials.losses.outer[number], own.outer[0], rtol=1e-3, atol=1e-4)
        kin = [what.readers[i] for i in what.stronger[number]]
        assert kin == [replace(reader, l2=l2) for l2 in CONFIG.l2 if l2 > reader.l2]


def test_the_best_among_some_is_one_of_them(tried: tuple[Plan, Trials]) -> None:
    what, trials = tried
    among = [i for i, r in enumerate(what.readers) if r.layout == "branched" and r.window == 1]
    best = trials.best(trials.losses.outer, among)
    lowest = min(among, key=lambda i: trials.losses.outer[i].mean())
    assert best == lowest or best in what.stronger[lowest]


def test_depths_of_a_window_are_those_held() -> None:
    reader = Reader(layout="listed", position="answer", depth=9, l2=0.1, window=5)
    assert reader.depths((0, 3, 9, 12, 20, 30)) == (0, 3, 9, 12, 20)
    assert replace(reader, depth=0).depths((0, 3, 9, 12)) == (0, 3, 9)
    assert replace(reader, depth=12).depths((0, 3, 9, 12)) == (3, 9, 12)


VARIANTS = {
    "window": CONFIG.model_copy(update={"windows": (3,)}),
    "stack": CONFIG.model_copy(update={"stack": True, "windows": (1,)}),
    "mlp": CONFIG.model_copy(update={"families": ("mlp",), "windows": (1,), "depths": (1,)}),
    "repeats": CONFIG.model_copy(update={"repeats": 2, "windows": (1,), "depths": (0, 1)}),
}


@pytest.mark.parametrize("variant", VARIANTS)
def test_saved_and_loaded_it_says_the_same_and_file_order_and_test_rows_do_not_matter(
    variant: str, fake_states: Build, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = VARIANTS[variant]
    task = task_of()
    monkeypatch.setattr("probekd.probes.mlp.STEPS", 40)
    if variant == "stack":  # whatever these few rows say of it
        monkeypatch.setattr("probekd.probes.pick.wins", lambda *_, **__: True)
    states = states_of(task, fake_states)
    probe = fit_probes(states, task, config=config)
    assert len(probe.readers) == (2 if variant == "stack" else 1)
    probe.save(tmp_path)
    loaded = Probe.load(tmp_path)
    test = [e.id for e in task.splits["test"]]
    said = probe.logits(states, test)
    np.testing.assert_array_equal(loaded.logits(states, test), said)
    assert (loaded.readers, loaded.weights, loaded.fold_readers) == (probe.readers, probe.weights, probe.fold_readers)
    np.testing.assert_array_equal(loaded.honest, probe.honest)
    # What is said is the weighted sum, over readers, of the mean over depths and fold models.
    expected = np.zeros((len(test), 3))
    for reader, weight, fits in zip(probe.readers, probe.weights, probe.fits, strict=True):
        assert tuple(fits) == reader.depths(config.depths or tuple(range(DEPTHS)))
        each = [fit.logits(states.read(reader.layout, reader.position, d, test)) for d, fit in fits.items()]
        assert all(len(e) == 3 * config.repeats for e in each)
        expected += weight * np.mean(each, axis=(0, 1))
    np.testing.assert_allclose(
        said, probe.calibration.softened(probe.flattery / probe.sharpness).apply(expected), rtol=1e-4, atol=1e-4
    )
    for layout, (positions, depths) in probe.needs.items():
        own = [(r, f) for r, f in zip(probe.readers, probe.fits, strict=True) if r.layout == layout]
        assert set(positions) == {r.position for r, _ in own} and set(depths) == {d for _, f in own for d in f}
    assert set(probe.needs) == {r.layout for r in probe.readers}
    # Another order of the file and further test rows, with states of their own.
    more = task_of(extra=("spare",))
    mixed = {"train": more.splits["train"][::-1], "test": (*more.splits["test"], *more.splits["spare"])}
    other = fit_probes(states_of(more, fake_states), replace(more, splits=mixed), config=config)
    assert (other.ids, other.readers, other.weights, other.fold_readers) == (
        probe.ids,
        probe.readers,
        probe.weights,
        probe.fold_readers,
    )
    np.testing.assert_array_equal(other.folds, probe.folds)
    np.testing.assert_array_equal(other.honest, probe.honest)


def test_a_stack_of_layouts_that_err_apart_is_chosen_and_beats_either(fake_states: Build) -> None:
    task = task_of(n=240)
    states = states_of(task, fake_states, signal=0.9)
    single = fit_probes(states, task, config=CONFIG.model_copy(update={"depths": (1,), "windows": (1,)}))
    stack = fit_probes(states, task, config=CONFIG.model_copy(update={"depths": (1,), "windows": (1,), "stack": True}))
    assert len(single.readers) == 1
    assert {r.layout for r in stack.readers} == {"listed", "branched"} and min(stack.weights) > 0
    assert stack.scores["nll"] < single.scores["nll"]


def test_a_stack_with_a_layout_that_knows_nothing_is_not(fake_states: Build) -> None:
    task = task_of(n=240)
    states = states_of(task, fake_states)
    draw = np.random.default_rng(0)
    values = {
        key: {i: draw.normal(size=x.shape).astype(np.float32) if key[0] == "listed" else x for i, x in held.items()}
        for key, held in states.values.items()
    }
    config = CONFIG.model_copy(update={"depths": (1,), "windows": (1,), "stack": True})
    probe = fit_probes(replace(states, values=values), task, config=config)
    assert [r.layout for r in probe.readers] == ["branched"]


def test_repeats_are_averaged(fake_states: Build, monkeypatch: pytest.MonkeyPatch) -> None:
    task = task_of()
    states = states_of(task, fake_states)
    config = CONFIG.model_copy(update={"depths": (1,), "positions": ("option_end",), "windows": (1,), "l2": (0.3,)})
    both = fit_probes(states, task, config=config.model_copy(update={"repeats": 2}))
    from probekd.probes import fit

    original = fit.assign_folds
    alone = []
    for r in range(2):
        monkeypatch.setattr(fit, "assign_folds", lambda *a, repeat, at=r, **k: original(*a, repeat=at, **k))
        alone.append(fit_probes(states, task, config=config))
    assert (alone[0].folds != alone[1].folds).any()
    np.testing.assert_array_equal(both.folds, alone[0].folds)
    for field in ("honest", "uncalibrated"):
        expected = np.mean([getattr(a, field) for a in alone], axis=0)
        np.testing.assert_allclose(getattr(both, field), expected, rtol=1e-4, atol=1e-4)
    assert len(both.fold_readers) == 6


def test_averages_wider_than_the_depths_leave_each_depth_by_itself(fake_states: Build) -> None:
    task = task_of()
    states = states_of(task, fake_states)
    wide = fit_probes(states, task, config=CONFIG.model_copy(update={"windows": (9,)}))
    alone = fit_probes(states, task, config=CONFIG.model_copy(update={"windows": (1,)}))
    assert wide.readers == alone.readers
    np.testing.assert_array_equal(wide.honest, alone.honest)


def test_optimism_is_that_of_all_that_was_chosen(fake_states: Build, tmp_path: Path) -> None:
    task = task_of()
    states = states_of(task, fake_states)
    probe = fit_probes(states, task, config=CONFIG.model_copy(update={"stack": True, "windows": (1,)}))
    assert len(probe.readers) == 2
    probe.save(tmp_path)
    found = json.loads((tmp_path / "probe.json").read_text())["optimism"]
    z = np.stack([probe.calibration.apply(row) for row in probe.uncalibrated])
    z -= np.log(np.exp(z).sum(1, keepdims=True))
    assert found["chosen_nll"] == pytest.approx(-z[np.arange(N), probe.answers].mean())
    assert found["outside_nll"] == probe.scores["nll"] > found["chosen_nll"]
