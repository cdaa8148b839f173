"""The simulations of studies/simulations.py, a few of each: they run, and they would notice a choice that is not nested."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import simulations
from simulations import World

from probekd.probes.calibrate import Calibration
from probekd.probes.choose import Choice, choose

RUNS = 10


def naive(*arguments: object) -> Choice:
    """What is chosen by all rows, reported on the same rows."""
    choice = choose(*arguments)  # type: ignore[arg-type]
    fits = arguments[0]
    count = len(choice.by_fold)
    plain = Calibration(scale=np.ones(4), shift=np.zeros(4))
    return replace(
        choice,
        honest=fits.outer[choice.chosen],  # type: ignore[attr-defined]
        by_fold=(choice.chosen,) * count,
        fold_calibrations=(plain,) * count,
    )


@pytest.mark.slow
def test_the_simulation_of_optimism_notices_a_choice_that_is_not_nested(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(simulations, "STRENGTHS", (0.3,))
    world = World(width=12, signals=(1.4,) * 12, shared=0.0)
    nested = [simulations.one_optimism(seed, world=world, n=60) for seed in range(RUNS)]
    monkeypatch.setattr(simulations, "choose", naive)
    broken = [simulations.one_optimism(seed, world=world, n=60) for seed in range(RUNS)]
    honest, wrong = (np.array([row["bias"] for row in rows]) for rows in (nested, broken))
    error = (wrong - honest).std(ddof=1) / RUNS**0.5
    assert (wrong - honest).mean() > max(0.05, 3 * error)
    assert abs(honest.mean()) < 3 * honest.std(ddof=1) / RUNS**0.5
    # With the choice reported on its own rows, what is reported is the naive figure itself.
    assert wrong == pytest.approx([row["naive bias, chosen by log-loss"] for row in broken], abs=1e-6)


def test_fresh_rows_are_read_by_the_makers_of_the_honest_predictions() -> None:
    world = World(width=8, signals=(1.5, 1.5), shared=0.0)
    generator = np.random.default_rng(0)
    answers, folds = np.arange(60) % 4, np.arange(60) // 4 % 5
    states = world.draw(answers, world.directions(generator), generator)
    fits = simulations.cross_fitted(states, answers, folds)
    choice = choose(fits, answers, folds, simulations.kin(2))
    models = simulations.FoldModels(states, states, answers, folds)
    again = simulations.outside(choice, models)
    # On the labelled rows themselves, each fold's models say of their own fold what was reported.
    own = again[folds, np.arange(60)]
    assert own == pytest.approx(choice.honest, abs=0.02)


def test_few_simulations_cover_and_seldom_cry_wolf() -> None:
    covered = simulations.coverage(simulations.in_turn, 6)
    alarms = simulations.false_alarms(simulations.in_turn, 6)
    assert len(covered) == 4 * 2 * len(simulations.SETTINGS) and len(alarms) == 2 * len(simulations.NULLS)
    easy = [f.value for f in covered if "equal readers" in f.name or "different" in f.name]
    assert min(easy) >= 0.6 and np.mean(easy) > 0.85
    assert np.mean([f.value for f in alarms]) < 0.15


def test_the_whole_gate_from_end_to_end() -> None:
    figures = {f.name: f for f in simulations.end_to_end(simulations.in_turn, 2, n=60)}
    # The probe reads states from which more is to be had than from the words.
    assert figures["end to end, n=60: accuracy, true difference of the procedure"].value > 0.05
    assert figures["end to end, n=60: log-loss, true difference of the procedure"].value < -0.1


def test_a_figure_says_whether_it_is_in_its_band(tmp_path: Path) -> None:
    inside = simulations.share("a", [True] * 95 + [False] * 5, simulations.COVERAGE)
    outside = simulations.share("b", [True, False], simulations.COVERAGE)
    assert inside.se == pytest.approx((0.95 * 0.05 / 100) ** 0.5)
    (tmp_path / "x.json").write_text(simulations.written([inside, outside, simulations.average("c", [1.0, 3.0])], "me"))
    value = json.loads((tmp_path / "x.json").read_text())
    assert [f["pass"] for f in value["figures"]] == [True, False, None]
    assert list(value["figures"][0]) == ["name", "value", "se", "simulations", "target", "pass"]
    assert value["figures"][2]["value"] == 2 and value["figures"][2]["se"] == pytest.approx(1)


def test_the_committed_figures_are_of_the_studies_that_are_run() -> None:
    value = json.loads(simulations.RESULTS.read_text(encoding="utf-8"))
    names = [f["name"] for f in value["figures"]]
    for setting in simulations.SETTINGS:
        assert f"coverage, {setting}, n=100: log-loss" in names
    for setting in simulations.NULLS:
        assert f"probe-kd said, {setting}, n=300" in names
    assert value["command"] == "python studies/simulations.py"
    assert all(f["simulations"] >= 200 for f in value["figures"])
