"""Training sets solved one by one in their own axes, against scikit-learn and against the batch of all of them."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from readings import centred, features_of, rows, sklearn_logits, training_sets
from scipy.spatial.distance import pdist
from sklearn.preprocessing import StandardScaler

from probekd.probes import logistic
from probekd.probes.features import Features
from probekd.probes.logistic import solve, solve_soft
from probekd.probes.own_axes import CROWDED, OwnAxes, own_axes_pay

L2 = [0.01, 0.3, 3.0]
# More rows than dimensions, and fewer.
WIDTHS = [12, 150]


@pytest.fixture
def alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(logistic, "own_axes_pay", lambda *_: True)


@pytest.mark.parametrize("d", WIDTHS)
@pytest.mark.usefixtures("alone")
def test_each_problem_is_scikit_learns(d: int) -> None:
    x, y = rows(d=d)
    train = training_sets(len(x))
    fit = solve(features_of(x, 3), y, train, L2, tolerance=1e-9)
    assert fit.weight.shape == (9, d, 3) and fit.bias.shape == (9, 3)
    for number, ours in enumerate(fit.logits(x)):
        mask, l2 = train[number // 3], L2[number % 3]
        expected = sklearn_logits(x[mask], y[mask], l2, x)
        np.testing.assert_allclose(centred(ours), centred(expected), rtol=1e-4, atol=2e-5)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("d", WIDTHS)
def test_it_ends_where_the_batch_ends(d: int, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch) -> None:
    x, _ = rows(d=d)
    # As hidden states are: a few dimensions of large variance, and far from zero.
    x = x * np.logspace(2, -2, d) + 30
    draw = np.random.default_rng(1)
    weights = draw.integers(0, 3, size=(2, len(x))).astype(float)
    targets = draw.dirichlet(np.ones(4), size=len(x))
    held = Features(x, np.ones((len(x), 4), dtype=bool), dtype)
    together = solve_soft(held, targets, weights, L2, tolerance=1e-6)
    monkeypatch.setattr(logistic, "own_axes_pay", lambda *_: True)
    apart = solve_soft(held, targets, weights, L2, tolerance=1e-6)
    np.testing.assert_allclose(centred(apart.logits(x)), centred(together.logits(x)), rtol=1e-3, atol=2e-3)


@pytest.mark.usefixtures("alone")
def test_a_class_that_a_training_set_does_not_have() -> None:
    x, y = rows(d=150, classes=4)
    train = training_sets(len(x))
    train[0] &= y != 3
    fit = solve(features_of(x, 4), y, train, L2, tolerance=1e-9)
    for ours, l2 in zip(fit.logits(x)[:3], L2, strict=True):
        expected = sklearn_logits(x[train[0]], y[train[0]], l2, x)
        np.testing.assert_allclose(centred(ours[:, :3]), centred(expected), rtol=1e-4, atol=2e-5)


@pytest.mark.usefixtures("alone")
def test_states_that_are_all_one_have_no_axes() -> None:
    _, y = rows(n=30)
    x = np.full((30, 40), 7.0)
    fit = solve(features_of(x, 3), y, np.ones((1, 30), dtype=bool), L2, tolerance=1e-9)
    shares = np.log(np.bincount(y, minlength=3) / 30)
    for said in fit.logits(x):
        np.testing.assert_allclose(centred(said), centred(np.tile(shares, (30, 1))), atol=1e-4)


def test_along_the_axes_rows_are_uncorrelated_and_keep_their_distances() -> None:
    x, _ = rows(d=150)
    held = features_of(x, 3)
    weights = torch.as_tensor(training_sets(len(x))[0]).double()
    mean, scale = held.moments(weights[None])
    found = OwnAxes.of(held, weights, mean[0], scale[0])
    inside = weights > 0
    assert torch.equal(found.rows, inside.nonzero()[:, 0])
    assert len(found.variance) < int(inside.sum()) < 150
    covariance = found.x.T @ found.x / inside.sum()
    torch.testing.assert_close(covariance, torch.diag(found.variance), rtol=1e-6, atol=1e-8)
    own = StandardScaler().fit_transform(x[inside.numpy()])
    np.testing.assert_allclose(pdist(found.x.numpy()), pdist(own), rtol=1e-6)


def test_when_it_pays() -> None:
    def pays(n: int, d: int, classes: int, *, options: bool = False) -> bool:
        x = np.zeros((n, classes, d) if options else (n, d), dtype=np.float32)
        held = Features(x, np.ones((n, classes), dtype=bool), torch.float32)
        return own_axes_pay(held, torch.ones(1, n), 7)

    assert pays(80, 576, 77) and pays(240, 576, 77)
    assert not pays(800, 576, 77), "there are no fewer axes than dimensions"
    assert not pays(80, 576, 4), "a batch of all problems is small"
    assert not pays(1600, 2048, 8) and not pays(1600, 4096, 4), "factorising takes longer than it saves"
    assert not pays(3, CROWDED, 2, options=True), "an option scorer has one weight a dimension"
