from __future__ import annotations

import numpy as np
import pytest
import torch
from readings import features_of, options, rows, training_sets

from probekd.probes import logistic, mass_mean, mlp, ridge
from probekd.probes.features import ArrayBlocks, Features, LinearFit


@pytest.mark.parametrize("shape", ["classes", "options"])
def test_moments_are_those_of_each_training_sets_own_states(shape: str) -> None:
    x, _ = rows() if shape == "classes" else options()
    held, train = features_of(x, 3, filler=1e4), training_sets(len(x))
    mean, scale = held.moments(torch.as_tensor(train))
    for t, mask in enumerate(train):
        there = x[mask] if shape == "classes" else x[mask][~np.isnan(x[mask]).any(2)]
        spread = there.std(0)
        np.testing.assert_allclose(mean[t] * held.spread + held.centre, there.mean(0), rtol=1e-9)
        np.testing.assert_allclose(scale[t] * held.spread, np.where(spread < 1e-9, 1, spread), rtol=1e-6)


@pytest.mark.parametrize("n", [100, 400, 1000])
@pytest.mark.parametrize("base", [0.0, 0.37, 5.3])
def test_a_feature_that_one_row_alone_departs_from_does_not_decide_that_row(n: int, base: float) -> None:
    draw = np.random.default_rng(0)
    x, y = draw.normal(size=(n, 10)).astype(np.float32), draw.integers(0, 3, n)
    x[:, 4] = base
    x[0, 4] += 8
    held, train = Features(x, np.ones((n, 3), dtype=bool)), (np.arange(n) > 0)[None]
    # In float32 rounding leaves a variance where there is none; divided by it, the row would be far from all others.
    assert float(held.moments(torch.as_tensor(train))[1][0, 4]) == 1
    for fit in (
        logistic.solve(held, y, train, (0.03,), tolerance=1e-5),
        ridge.solve(held, y, train, (0.03,)),
        mass_mean.solve(held, y, train),
        mlp.solve(held, y, train, np.arange(n) % 20, (0.01,)) if n == 400 else ridge.solve(held, y, train, (1.0,)),
    ):
        assert np.abs(fit.logits(x)[0][0]).max() < 5


@pytest.mark.parametrize("shape", [(60, 6), (60, 3, 6)])
def test_states_that_are_all_one_are_read_as_nothing(shape: tuple[int, ...]) -> None:
    x, y = np.full(shape, 3.7, dtype=np.float32), np.arange(60) % 3
    held, train = Features(x, np.ones((60, 3), dtype=bool)), training_sets(60)
    for fit in (logistic.solve(held, y, train, (0.1, 1.0), tolerance=1e-5), ridge.solve(held, y, train, (0.1,))):
        logits = fit.logits(x)
        assert np.isfinite(logits).all() and np.abs(logits - logits[:, :1]).max() < 1e-5


@pytest.mark.parametrize("options_too", [False, True])
def test_axes_are_the_principal_ones(options_too: bool) -> None:
    x, _ = options() if options_too else rows()
    held = features_of(x, 3)
    axes, variance, rest = held.principal_axes
    z = torch.cat([held.centred(r, b) for r, b in held.blocks()]).numpy()
    np.testing.assert_allclose(axes.numpy() * variance.numpy() @ axes.numpy().T, z.T @ z / len(x), atol=1e-8)
    assert rest == 0


def test_blocks_are_the_array_in_order(monkeypatch: pytest.MonkeyPatch) -> None:
    x = np.arange(60, dtype=np.float32).reshape(10, 2, 3)
    for size in (1, 24, 50, 10_000):
        monkeypatch.setattr("probekd.probes.features.BLOCK_BYTES", size)
        blocks = list(ArrayBlocks(x).blocks())
        np.testing.assert_array_equal(np.concatenate([b for _, b in blocks]), x)
        np.testing.assert_array_equal(np.concatenate([np.arange(10)[r] for r, _ in blocks]), np.arange(10))


def test_logits_of_a_fit_are_a_product_with_the_states_as_they_come() -> None:
    draw = np.random.default_rng(0)
    x, z = draw.normal(size=(5, 4)), draw.normal(size=(5, 3, 4))
    fit = LinearFit(weight=torch.as_tensor(draw.normal(size=(2, 4, 6))), bias=torch.as_tensor(draw.normal(size=(2, 6))))
    for p in range(2):
        np.testing.assert_allclose(fit.logits(x)[p], x @ fit.weight[p].numpy() + fit.bias[p].numpy(), rtol=1e-5)
    fit = LinearFit(weight=fit.weight[:, :, :1], bias=fit.bias[:, :1])
    for p in range(2):
        expected = z @ fit.weight[p, :, 0].numpy() + float(fit.bias[p])
        np.testing.assert_allclose(fit.logits(z)[p], expected, rtol=1e-5)
