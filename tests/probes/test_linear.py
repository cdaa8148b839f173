"""Probes as one linear map, against what they say themselves."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from planted import CONFIG, WIDTH, N, fitted

from probekd.probes.calibrate import Calibration, one_temperature
from probekd.probes.fit import fit_probes
from probekd.probes.linear import LinearMap, linear_map
from probekd.tasks.base import Example, Task


@pytest.mark.usefixtures("one_temperature")
def test_a_k_way_probe_is_the_map_that_it_says_it_is(fake_states: Callable[..., Any]) -> None:
    probe, states, _ = fitted(fake_states)
    uneven = Calibration(scale=np.array([0.5, 1.0, 2.0]), shift=np.array([0.1, 0.0, -0.3]))
    for one in (probe, replace(probe, calibration=uneven, sharpness=1.3, flattery=1.1)):
        said = linear_map(one)(states.read("listed", "answer", 0, probe.ids))
        np.testing.assert_allclose(said, np.stack(one.logits(states, probe.ids)), atol=1e-5)


def test_no_map_lapses_and_the_temperature_is_the_best_by_itself(fake_states: Callable[..., Any]) -> None:
    probe, _, _ = fitted(fake_states)
    lapsing = replace(probe, calibration=Calibration(scale=np.full(3, 9.0), shift=np.zeros(3), lapse=0.2))
    plain = replace(probe, calibration=one_temperature(probe.uncalibrated, probe.scored_answers))
    np.testing.assert_allclose(linear_map(lapsing).weight, linear_map(plain).weight, rtol=1e-6)
    assert np.abs(linear_map(plain).weight - linear_map(replace(plain, sharpness=9.0)).weight).max() > 1e-3


def test_a_class_that_one_fold_never_saw_counts_where_it_was_seen(fake_states: Callable[..., Any]) -> None:
    probe, states, _ = fitted(fake_states)
    fit = probe.fits[0][0]
    bias = fit.bias.clone()
    bias[0, 2] = bias[:, 1] = -np.inf  # class 2 was seen by two models of three, class 1 by none
    partly = replace(probe, fits=({0: replace(fit, bias=bias)},))
    found = linear_map(partly)
    x = states.read("listed", "answer", 0, probe.ids)
    expected = np.mean([x @ fit.weight[m, :, 2].numpy() + bias[m, 2].numpy() for m in (1, 2)], axis=0)
    scale = probe.sharpness / probe.flattery * probe.calibration.scale[2]
    np.testing.assert_allclose(found(x)[:, 2], expected * scale, atol=1e-4)
    assert (found(x)[:, 1] < -1000).all()


def test_options_that_share_a_scorer_have_one_temperature(fake_states: Callable[..., Any]) -> None:
    generator = np.random.default_rng(0)
    rows = [Example(id=f"r{i:03}", question=f"{i}?", options=("a", "b"), answer=i % 2) for i in range(N)]
    x = {e.id: generator.normal(size=(2, WIDTH)) + 1.2 * np.eye(2)[e.answer or 0][:, None] for e in rows}
    columns = {"branched": {"num_options": {e.id: 2 for e in rows}}}
    states = fake_states(
        splits={"train": [e.id for e in rows]}, values={("branched", "option_mean", 0): x}, columns=columns
    )
    task = Task(name="t", kind="multiple_choice", splits={"train": tuple(rows)})
    probe = fit_probes(states, task, config=CONFIG)
    probe = replace(probe, calibration=one_temperature(probe.uncalibrated, probe.scored_answers))
    where = states.read("branched", "option_mean", 0, probe.ids)
    np.testing.assert_allclose(linear_map(probe)(where)[..., 0], np.stack(probe.logits(states, probe.ids)), atol=1e-5)
    favouring = Calibration(scale=np.array([1.0, 1.5]), shift=np.array([1.0, 0.0]))
    assert favouring.kind == "vector scaling"
    single = linear_map(replace(probe, calibration=favouring))
    np.testing.assert_allclose(single.weight, linear_map(probe).weight, rtol=1e-4)


@pytest.mark.parametrize("n", [50, 400])
def test_states_with_a_direction_that_hardly_varies_need_no_bias(n: int) -> None:
    generator = np.random.default_rng(0)
    x = generator.normal(size=(2 * n, 100)) + generator.normal(size=100)
    x[:, 7] = 40 + generator.normal(size=2 * n)
    full = LinearMap(weight=generator.normal(size=(100, 3)) / 10, bias=np.array([3.0, -2.0, 0.0]))
    without = full.without_bias(x[:n])
    assert not without.bias.any()
    apart = without(x[n:]) - full(x[n:])
    assert np.abs(apart).max() < 0.3
    np.testing.assert_allclose(without.weight[:, 2], full.weight[:, 2])
    # With nothing but noise there is no bias to be had, and none is made up.
    noise = x[:, :7] - x[:, :7].mean(0)
    lost = LinearMap(weight=full.weight[:7], bias=full.bias).without_bias(noise[:n] + 1e-3)
    assert np.isfinite(lost.weight).all()
