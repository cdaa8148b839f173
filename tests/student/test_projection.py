from __future__ import annotations

import numpy as np
import pytest

from probekd.student.projection import fit_projection


@pytest.mark.parametrize("options", [False, True])
def test_states_that_follow_the_embedding_are_found_and_noise_is_not_fitted(options: bool) -> None:
    draw = np.random.default_rng(0)
    n, d, width = 300, 8, 5
    counts = 2 + np.arange(n) % 3 if options else np.full(n, 3)
    x = draw.normal(size=(n, 4, d)) + 3 if options else draw.normal(size=(n, 1, d)) + 3
    matrix = draw.normal(size=(d, width))
    y = x @ matrix
    y[..., 2] = 1000 * draw.normal(size=y.shape[:-1])  # a massive dimension that follows nothing
    if options:  # what lies beyond a row's options must not matter
        beyond = np.arange(4) >= counts[:, None]
        x[beyond], y[beyond] = 1e6, -1e6
    found = fit_projection(x, [row[:k] if options else row[0] for row, k in zip(y, counts, strict=True)])
    new = draw.normal(size=(50, 1, d)) + 3
    there = np.array([0, 1, 3, 4])
    true = (new @ matrix)[..., there].reshape(-1, 4)
    said = found.apply(new)[..., there].reshape(-1, 4)
    for a, b in zip(said.T, true.T, strict=True):
        assert np.corrcoef(a, b)[0, 1] > 0.999
    assert found.apply(new)[..., 2].std() < 0.35  # of a state whose standardised spread is 1
    assert found.apply(new).dtype == np.float32 and found.apply(new).shape == (50, 1, width)
