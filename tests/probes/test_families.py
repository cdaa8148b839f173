from __future__ import annotations

import numpy as np
import pytest

from probekd.probes.calibrate import gold_losses
from probekd.probes.choose import choose
from probekd.probes.crossfit import crossfit
from probekd.probes.families import MLP_L2, applies, strengths_of

SMALL = ("logistic", "ridge", "mass_mean", "mlp")


@pytest.mark.parametrize(
    ("family", "kind"), [*((f, k) for f in SMALL for k in ("answer", "option")), ("low_rank", "answer")]
)
@pytest.mark.usefixtures("one_temperature")
def test_random_labels_are_not_read_out_of_fold(family: str, kind: str) -> None:
    draw = np.random.default_rng(5)
    n, d, k = (240, 40, 20) if family == "low_rank" else (150, 100, 3)
    states = draw.normal(size=(n, d) if kind == "answer" else (n, k, d)).astype(np.float32)
    answers, folds, present = draw.permutation(np.arange(n) % k), draw.permutation(n) % 3, np.ones((n, k), dtype=bool)
    strengths = strengths_of(family, (0.03, 0.3))  # type: ignore[arg-type]
    fits = crossfit(states, answers, present, folds, strengths, tolerance=1e-3, family=family)  # type: ignore[arg-type]
    honest = choose(fits, answers, folds).honest
    losses = gold_losses(honest, answers)
    error = losses.std() / n**0.5
    assert losses.mean() > np.log(k) - 3 * error
    assert (honest.argmax(1) == answers).mean() < 1 / k + 3 * np.sqrt((1 / k) * (1 - 1 / k) / n)
    assert np.isfinite(honest).all()


@pytest.mark.parametrize("family", [*SMALL, "low_rank"])
def test_labels_and_states_of_a_fold_reach_none_of_its_predictions(family: str) -> None:
    draw = np.random.default_rng(6)
    n, k = 90, 20 if family == "low_rank" else 3
    answers, folds, present = np.arange(n) % k, draw.permutation(n) % 3, np.ones((n, k), dtype=bool)
    states = draw.normal(size=(n, 30)).astype(np.float32) + np.eye(k, 30, dtype=np.float32)[answers] * 2
    other = np.where(folds == 1, (answers + 1) % k, answers)
    strengths = strengths_of(family, (0.3,))  # type: ignore[arg-type]

    def fit(y: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        fits = crossfit(states, y, present, folds, strengths, tolerance=1e-6, family=family)  # type: ignore[arg-type]
        return fits.outer, fits.inner

    (outer, inner), (outer_after, inner_after) = fit(answers), fit(other)
    np.testing.assert_allclose(outer_after[:, folds == 1], outer[:, folds == 1], atol=1e-3)
    np.testing.assert_allclose(inner_after[1], inner[1], atol=1e-3)
    assert np.abs(outer_after[:, folds != 1] - outer[:, folds != 1]).max() > 0.01


@pytest.mark.parametrize("family", [*SMALL, "low_rank"])
def test_models_that_left_two_of_three_folds_out_have_learned(family: str) -> None:
    """One fold is left to them, from which an MLP must also take what stops it."""
    draw = np.random.default_rng(8)
    n, k = (180, 20) if family == "low_rank" else (90, 3)
    answers, present = np.arange(n) % k, np.ones((n, k), dtype=bool)
    folds = np.arange(n) // k % 3
    states = draw.normal(size=(n, 30)).astype(np.float32) + np.eye(k, 30, dtype=np.float32)[answers] * 5
    strengths = strengths_of(family, (0.3,))  # type: ignore[arg-type]
    fits = crossfit(states, answers, present, folds, strengths, tolerance=1e-6, family=family)  # type: ignore[arg-type]
    for f in range(3):
        inner = fits.inner[f][:, folds != f]
        assert ((inner.argmax(2) == answers[folds != f]).mean(1) > 0.7).all()


def test_strengths_and_where_a_family_applies() -> None:
    assert strengths_of("mass_mean", (0.1, 1.0)) == (0.0,)
    assert strengths_of("mlp", (0.1,)) == MLP_L2
    assert strengths_of("ridge", (0.1, 1.0)) == (0.1, 1.0)
    assert applies("low_rank", options=False, classes=17)
    assert not applies("low_rank", options=False, classes=16) and not applies("low_rank", options=True, classes=50)
    assert all(applies(f, options=o, classes=2) for f in SMALL for o in (False, True))  # type: ignore[arg-type]
