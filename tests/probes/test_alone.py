"""The student alone: the probe's own rules on the student's embedding, and what it says of rows it has not seen."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from planted import CONFIG, fitted

from probekd.config import ProbeConfig
from probekd.probes.alone import fit_alone
from probekd.tasks.base import Example

FOLDS = np.arange(90) % 3


def choices(n: int = 90) -> tuple[np.ndarray, list[Example]]:
    """Embeddings (n, 4, 6) of rows with 2 to 4 options, whose right option is shifted."""
    draw = np.random.default_rng(0)
    counts = 2 + np.arange(n) % 3
    answers = draw.integers(counts)
    x = draw.normal(size=(n, 4, 6)).astype(np.float32)
    x[np.arange(n), answers] += 1.5
    rows = [
        Example(id=f"r{i}", question="?", options=tuple("abcd"[:k]), answer=int(a))
        for i, (k, a) in enumerate(zip(counts, answers, strict=True))
    ]
    return x, rows


def test_it_is_cross_fitted_as_a_probe_is(fake_states: Any) -> None:
    probe, states, examples = fitted(fake_states)
    x = states.read("listed", "answer", 0, probe.ids)
    alone = fit_alone(x[:, None], examples, probe.folds, CONFIG)
    np.testing.assert_allclose(alone.honest, probe.honest, rtol=1e-6)
    again = alone.logits(x[:5, None], examples[:5])
    np.testing.assert_allclose(again, probe.logits(states, probe.ids[:5]), rtol=1e-5, atol=1e-6)


def test_a_row_is_scored_over_its_own_options_and_by_no_model_that_saw_it() -> None:
    x, rows = choices()
    config = ProbeConfig(folds=3, l2=(0.1, 1.0), tolerance=1e-6)
    alone = fit_alone(x, rows, FOLDS, config)
    assert np.isfinite(alone.honest).sum(1).tolist() == [len(e.options) for e in rows]
    hits = alone.honest.argmax(1) == [e.answer for e in rows]
    assert hits.mean() > 0.75 and alone.strength in config.l2
    for f in range(3):  # a fold's own answers change nothing that is said of it
        turned = [
            Example(id=e.id, question="?", options=e.options, answer=0) if g == f else e
            for e, g in zip(rows, FOLDS, strict=True)
        ]
        other = fit_alone(x, turned, FOLDS, config)
        np.testing.assert_allclose(other.honest[f == FOLDS], alone.honest[f == FOLDS], rtol=1e-5)


@pytest.mark.usefixtures("one_temperature")
def test_rows_to_come_may_have_more_options_than_the_labelled_ones() -> None:
    x, rows = choices()
    alone = fit_alone(x[:, :4], rows, FOLDS, ProbeConfig(folds=3, l2=(0.1,)))
    wide = np.random.default_rng(1).normal(size=(2, 6, 6)).astype(np.float32)
    coming = [Example(id="p", question="?", options=tuple("abcdef")), Example(id="q", question="?", options=("a", "b"))]
    said = alone.logits(wide, coming)
    assert [len(row) for row in said] == [6, 2]
    assert said[0][4] == pytest.approx(
        alone.sharpness * alone.fit.logits(wide).mean(0)[0, 4] * alone.calibration.scale.mean(), rel=1e-5
    )
    assert alone.logits(wide[:0], []) == []
