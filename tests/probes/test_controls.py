"""Controls: what is left when labels or states are taken away."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from planted import CONFIG, fitted

from probekd.probes.controls import fit_shuffled, label_prior, refit
from probekd.tasks.base import Example


def test_label_prior_counts_the_other_folds() -> None:
    examples = [
        Example(id=str(i), question="?", options=tuple("abc"[:k]), answer=a)
        for i, (k, a) in enumerate([(3, 0), (3, 0), (2, 1), (3, 2)])
    ]
    answers, folds = np.array([0, 0, 1, 2]), np.array([0, 0, 1, 1])
    # Fold 0 is told by one b and one c: 1, 2, 2; fold 1 by two a: 3, 1, 1, of which the third row has two options.
    expected = -np.log([1 / 5, 1 / 5, 1 / 4, 1 / 5]).mean()
    assert label_prior(answers, examples, folds)["nll"] == pytest.approx(expected)


def test_refit_finds_what_the_probe_found_and_nothing_in_noise(fake_states: Any) -> None:
    probe, states, examples = fitted(fake_states)
    same = refit(probe, states, examples, probe.answers, config=CONFIG)
    assert same["nll"] == pytest.approx(probe.scores["nll"], rel=1e-5)
    assert same["accuracy"] == probe.scores["accuracy"] > 0.6
    shuffled = fit_shuffled(probe, states, examples, config=CONFIG, seed=0)
    assert abs(shuffled["accuracy"] - 1 / 3) < 0.15 and shuffled["nll"] > 1.0
    generator = np.random.default_rng(1)
    noise = {("listed", "answer", 0): {i: generator.normal(size=5) for i in probe.ids}}
    blind = fake_states(splits=states.splits, values=noise, columns=states.columns)
    assert refit(probe, blind, examples, probe.answers, config=CONFIG)["accuracy"] < 0.5
