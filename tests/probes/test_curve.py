"""The learning curve against one fold after another, fitted by itself, and its words."""

from __future__ import annotations

import numpy as np
import pytest
from planted import CONFIG, Build, N, fitted
from sklearn.linear_model import LogisticRegression

from probekd.probes import curve
from probekd.probes.curve import Point, learning_curve, outlook
from probekd.tasks.base import content_hash, nested_order


def test_points_are_those_of_scikit_learn(fake_states: Build, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(curve, "CHOOSING_TOLERANCE", 1e-7)
    probe, states, examples = fitted(fake_states)
    found = learning_curve(probe, states, examples, config=CONFIG, seed=5)
    assert [p.labels for p in found.points] == [30, 60, 120]
    x = states.read("listed", "answer", 0, probe.ids).astype(np.float64)
    place = {row_id: i for i, row_id in enumerate(probe.ids)}
    for point in found.points:
        losses = []
        hits = []
        for draw in range(curve.DRAWS):
            order = nested_order(examples, int(content_hash(5, "curve", draw)[:8], 16))
            part = np.array([place[e.id] for e in order[: point.labels]])
            logits = np.empty((N, 3))
            for f in range(3):
                rows = part[probe.folds[part] != f]
                mean, scale = x[rows].mean(0), x[rows].std(0)
                model = LogisticRegression(C=1 / (0.3 * len(rows)), tol=1e-10, max_iter=5000)
                model.fit((x[rows] - mean) / scale, probe.answers[rows])
                held = probe.folds == f
                logits[held] = model.decision_function((x[held] - mean) / scale)
            temperatures = np.exp(np.linspace(-2, 2, 4001))[:, None, None]
            z = logits / temperatures
            z = z - np.log(np.exp(z).sum(-1, keepdims=True))
            losses.append(-z[:, np.arange(N), probe.answers].mean(1).max())
            hits.append((logits.argmax(1) == probe.answers).mean())
        assert point.nll == pytest.approx(np.mean(losses), rel=1e-3)
        assert point.accuracy == pytest.approx(np.mean(hits), abs=0.01)


def test_too_few_labels_say_so(fake_states: Build) -> None:
    probe, states, examples = fitted(fake_states, n=21)
    found = learning_curve(probe, states, examples, config=CONFIG, seed=0)
    assert found.points == () and "21 labels are too few to tell (it takes 24)" in found.outlook
    assert found.as_dict()["points"] == ()


def points(*losses: float, se: float = 0.01) -> list[Point]:
    return [Point(labels=50 * 2**i, accuracy=0.5 + 0.1 * i, nll=loss, nll_se=se) for i, loss in enumerate(losses)]


@pytest.mark.parametrize(
    ("losses", "se", "said"),
    [
        (
            (1.5, 1.1, 0.9),
            0.01,
            "(100 to 200) took 0.20 off the probe's log-loss and +10 points of accuracy; the next would likely take about 0.10",
        ),
        ((1.5, 1.4, 1.2), 0.01, "the next would likely take about 0.20"),  # never more than the last one
        ((1.3, 1.4, 1.2), 0.01, "the next would likely take about 0.20"),
        (
            (1.5, 1.1, 1.09),
            0.05,
            "did not surely lower the probe's log-loss (-0.01): more labels would likely bring little",
        ),
        ((1.5, 1.1, 1.2), 0.05, "did not surely lower the probe's log-loss (+0.10)"),
    ],
)
def test_outlook(losses: tuple[float, ...], se: float, said: str) -> None:
    assert said in outlook(points(*losses, se=se))
