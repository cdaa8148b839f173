from __future__ import annotations

import numpy as np
import pytest
from readings import centred, features_of, rows, training_sets

from probekd.probes import logistic
from probekd.probes.calibrate import fit_temperature, gold_losses
from probekd.probes.low_rank import LowRankProbe, solve
from probekd.probes.ridge import RidgeProbe


def planted(n: int, seed: int = 0, *, classes: int = 24, d: int = 60) -> tuple[np.ndarray, np.ndarray]:
    """Classes that differ along four directions only, out of d noisy ones."""
    means = np.random.default_rng(7).normal(size=(classes, 4)) * 3 @ np.random.default_rng(8).normal(size=(4, d)) / 2
    draw = np.random.default_rng(seed)
    y = np.concatenate([np.arange(classes), draw.integers(classes, size=n - classes)])
    return means[y] + draw.normal(size=(n, d)) * 2.5, y


@pytest.mark.parametrize("rank", [1, 3, 5])
def test_weights_have_the_rank_asked_for(rank: int) -> None:
    x, y = planted(200)
    train = training_sets(200)
    fit = solve(features_of(x, 24), y, train, (0.03, 0.3), tolerance=1e-4, rank=rank)
    assert fit.weight.shape == (6, 60, 24)
    for w in fit.weight.numpy():
        size = np.linalg.svd(w, compute_uv=False)
        assert size[rank - 1] > 1e-3 * size[0] and size[rank:].max() < 1e-9 * size[0]
    assert np.linalg.matrix_rank(LowRankProbe(rank=rank).fit(x, y).coef_) == rank


def test_few_directions_serve_new_rows_better_than_all_where_few_hold_the_classes() -> None:
    x, y = planted(400)
    new, gold = planted(600, seed=1)

    def loss(probe: LowRankProbe | logistic.LogisticProbe) -> float:
        said = probe.fit(x, y).decision_function(new)
        return float(gold_losses(said / fit_temperature(said, gold), gold).mean())

    full = min(loss(logistic.LogisticProbe(l2=l2, tolerance=1e-3)) for l2 in (0.01, 0.03))
    assert loss(LowRankProbe(l2=0.01, rank=4, tolerance=1e-3)) < full - 0.1 < 1


def test_the_directions_are_the_principal_ones_of_the_ridges_fitted_values() -> None:
    x, y = planted(400)
    coef = RidgeProbe(l2=0.05).fit(x, y).coef_
    _, _, turn = np.linalg.svd((x - x.mean(0)) @ coef, full_matrices=False)
    expected = coef @ turn[:3].T
    found = LowRankProbe(l2=0.05, rank=3).fit(x, y).coef_
    ours, theirs = (np.linalg.svd(m, full_matrices=False)[0][:, :3] for m in (found, expected))
    np.testing.assert_allclose(np.linalg.svd(ours.T @ theirs)[1], 1, atol=1e-6)  # cosines of the principal angles


def test_two_classes_leave_one_direction_and_the_rest_is_the_logistic_fit_along_it() -> None:
    x, y = rows(classes=2)
    probe = LowRankProbe(l2=0.1, rank=2, tolerance=1e-9).fit(x, y)
    along = x @ (probe.coef_[:, :1] / np.linalg.norm(probe.coef_[:, 0]))
    expected = logistic.LogisticProbe(l2=0.1, tolerance=1e-9).fit(along, y).decision_function(along)
    np.testing.assert_allclose(centred(probe.decision_function(x)), centred(expected), rtol=1e-3, atol=1e-4)


def test_rows_outside_the_training_set_play_no_part() -> None:
    x, y = planted(120)
    train = np.arange(120)[None] < 80
    other, labels = x.copy(), y.copy()
    other[80:] *= -3
    labels[80:] = (labels[80:] + 1) % 24
    one, two = (
        solve(features_of(a, 24), b, train, (0.1,), tolerance=1e-9, rank=4).logits(x)
        for a, b in ((x, y), (other, labels))
    )
    np.testing.assert_allclose(one, two, rtol=1e-3, atol=1e-3)


def test_option_scorers_are_refused() -> None:
    x = np.random.default_rng(0).normal(size=(6, 3, 4))
    with pytest.raises(AssertionError, match="rank one already"):
        solve(features_of(x, 3), np.zeros(6, dtype=int), np.ones((1, 6), dtype=bool), (0.1,), tolerance=1e-3)
