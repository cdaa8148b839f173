from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy.optimize import minimize
from sklearn.base import clone
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import cross_val_score
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from probekd.probes.logistic import LinearFit, LogisticProbe, OptionProbe, solve

L2 = [0.01, 0.3, 3.0]


def rows(n: int = 80, d: int = 12, classes: int = 3, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """States as a teacher's: a mean far from 0, one massive and one constant dimension."""
    draw = np.random.default_rng(seed)
    y = draw.integers(classes, size=n)
    x = draw.normal(size=(n, d)) + draw.normal(size=(classes, d))[y] + 5
    x[:, 1] = 300 * x[:, 1] + 2000
    x[:, 2] = 7.0
    return x, y


def options(n: int = 60, k: int = 5, d: int = 6, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Option states with 2 to k options a row, NaN beyond."""
    draw = np.random.default_rng(seed)
    x = draw.normal(size=(n, k, d)) * [1, 1, 200, 1, 1, 1] + 3
    counts = draw.integers(2, k + 1, size=n)
    y = draw.integers(counts)
    x[np.arange(n), y] += draw.normal(size=d) + 0.5
    for i, count in enumerate(counts):
        x[i, count:] = np.nan
    return x, y


def sklearn_logits(x: np.ndarray, y: np.ndarray, l2: float, new: np.ndarray) -> np.ndarray:
    """Standardised by the training rows; scikit-learn sums the losses, hence C = 1 / (n * l2)."""
    scaler = StandardScaler().fit(x)
    model = LogisticRegression(C=1 / (len(x) * l2), tol=1e-12, max_iter=10000).fit(scaler.transform(x), y)
    return np.asarray(scaler.transform(new) @ model.coef_.T + model.intercept_)


def option_scores(x: np.ndarray, y: np.ndarray, l2: float, new: np.ndarray) -> np.ndarray:
    """The option scorer by brute force: one loop over rows, gradient by hand, scipy's L-BFGS."""
    there = x[~np.isnan(x).any(2)]
    mean, scale = there.mean(0), there.std(0)
    rows = [(row[~np.isnan(row).any(1)] - mean) / scale for row in x]

    def loss(w: np.ndarray) -> tuple[float, np.ndarray]:
        value, gradient = 0.5 * l2 * w @ w, l2 * w
        for row, gold in zip(rows, y, strict=True):
            scores = row @ w
            p = np.exp(scores - scores.max())
            p /= p.sum()
            value -= np.log(p[gold]) / len(y)
            gradient = gradient + (p @ row - row[gold]) / len(y)
        return float(value), gradient

    w = minimize(loss, np.zeros(x.shape[2]), jac=True, method="L-BFGS-B", options={"ftol": 1e-16, "gtol": 1e-10}).x
    return np.asarray((new - mean) / scale @ w)


def centred(logits: np.ndarray) -> np.ndarray:
    return np.asarray(logits - np.nanmean(logits, axis=1, keepdims=True))


@pytest.mark.parametrize("l2", L2)
@pytest.mark.parametrize("classes", [3, 5])
def test_logistic_probe_is_scikit_learns(l2: float, classes: int) -> None:
    x, y = rows(classes=classes)
    new, _ = rows(seed=9, classes=classes)
    ours = LogisticProbe(l2=l2, tolerance=1e-9).fit(x, y).decision_function(new)
    np.testing.assert_allclose(centred(ours), centred(sklearn_logits(x, y, l2, new)), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("l2", L2)
def test_option_probe_is_the_brute_force_minimum(l2: float) -> None:
    x, y = options()
    new, _ = options(seed=9)
    ours = OptionProbe(l2=l2, tolerance=1e-9).fit(x, y).decision_function(new)
    expected = option_scores(x, y, l2, new)
    assert np.isneginf(ours[np.isnan(expected)]).all()
    ours = np.where(np.isnan(expected), np.nan, ours)
    np.testing.assert_allclose(centred(ours), centred(expected), rtol=1e-4, atol=1e-5)


def test_option_probabilities_are_over_a_rows_own_options() -> None:
    x, y = options()
    probe = OptionProbe(l2=0.1).fit(x, y)
    p = probe.predict_proba(x)
    absent = np.isnan(x).any(2)
    np.testing.assert_allclose(p.sum(1), 1)
    assert (p[absent] == 0).all()
    assert not absent[np.arange(len(y)), probe.predict(x)].any()
    assert probe.score(x, y) > 0.6


def problems(n: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Six problems: three training sets, two strengths."""
    draw = torch.Generator().manual_seed(3)
    sets = torch.rand(3, n, generator=draw) < torch.tensor([0.9, 0.6, 0.7])[:, None]
    return sets.repeat_interleave(2, dim=0), torch.tensor([0.03, 1.0] * 3, dtype=torch.float64)


def test_each_problem_of_a_batch_is_scikit_learns_on_its_own_training_rows() -> None:
    x, y = rows()
    train, l2 = problems(len(x))
    fit = solve(
        torch.as_tensor(x), torch.as_tensor(y), torch.ones(len(x), 3, dtype=torch.bool), train, l2, tolerance=1e-9
    )
    assert fit.weight.shape == (6, 12, 3) and fit.bias.shape == (6, 3)
    for ours, mask, strength in zip(fit.logits(torch.as_tensor(x)).numpy(), train.numpy(), l2.tolist(), strict=True):
        expected = sklearn_logits(x[mask], y[mask], strength, x)
        np.testing.assert_allclose(centred(ours), centred(expected), rtol=1e-4, atol=1e-5)


def test_each_option_problem_of_a_batch_is_brute_forced_on_its_own_training_rows() -> None:
    x, y = options()
    train, l2 = problems(len(x))
    present = ~np.isnan(x).any(2)
    states = torch.as_tensor(np.nan_to_num(x, nan=1e6))  # what stands in absent places must not matter
    fit = solve(states, torch.as_tensor(y), torch.as_tensor(present), train, l2, tolerance=1e-9)
    assert fit.weight.shape == (6, 6, 1)
    for ours, mask, strength in zip(fit.logits(states).numpy(), train.numpy(), l2.tolist(), strict=True):
        expected = option_scores(x[mask], y[mask], strength, x)
        ours = np.where(present, ours, np.nan)
        np.testing.assert_allclose(centred(ours), centred(expected), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("shape", ["classes", "options"])
def test_a_batch_gives_what_each_problem_gives_alone(shape: str) -> None:
    x, y = rows() if shape == "classes" else options()
    present = torch.ones(len(x), 3, dtype=torch.bool) if shape == "classes" else torch.as_tensor(~np.isnan(x).any(2))
    states, answers = torch.as_tensor(np.nan_to_num(x)), torch.as_tensor(y)
    train, l2 = problems(len(x))
    together = solve(states, answers, present, train, l2, tolerance=1e-8)
    for i in range(len(l2)):
        alone = solve(states, answers, present, train[i : i + 1], l2[i : i + 1], tolerance=1e-8)
        torch.testing.assert_close(together.weight[i], alone.weight[0], rtol=1e-5, atol=1e-7)
        torch.testing.assert_close(together.bias[i], alone.bias[0], rtol=1e-5, atol=1e-5)


def test_rows_outside_the_training_set_play_no_part() -> None:
    x, y = rows()
    train = torch.zeros(1, len(x), dtype=torch.bool)
    train[:, :50] = True

    def fit(states: np.ndarray, answers: np.ndarray) -> LinearFit:
        present = torch.ones(len(x), 3, dtype=torch.bool)
        l2 = torch.tensor([0.1], dtype=torch.float64)
        return solve(torch.as_tensor(states), torch.as_tensor(answers), present, train, l2, tolerance=1e-10)

    other_x, other_y = x.copy(), y.copy()
    other_x[50:] = other_x[50:] * 5 - 40
    other_y[50:] = (other_y[50:] + 1) % 3
    one, two = fit(x, y).logits(torch.as_tensor(x)), fit(other_x, other_y).logits(torch.as_tensor(x))
    torch.testing.assert_close(one, two, rtol=1e-4, atol=1e-5)


def test_float32_is_close_to_float64() -> None:
    x, y = rows()
    fits = [
        solve(
            torch.as_tensor(x, dtype=dtype),
            torch.as_tensor(y),
            torch.ones(len(x), 3, dtype=torch.bool),
            torch.ones(1, len(x), dtype=torch.bool),
            torch.tensor([0.1], dtype=dtype),
            tolerance=1e-4,
        ).logits(torch.as_tensor(x, dtype=dtype))
        for dtype in (torch.float32, torch.float64)
    ]
    torch.testing.assert_close(fits[0].double().softmax(-1), fits[1].softmax(-1), rtol=0, atol=2e-3)


@pytest.mark.parametrize("probe", [LogisticProbe(l2=0.2, tolerance=1e-5), OptionProbe(l2=0.2, tolerance=1e-5)])
def test_scikit_learns_contract(probe: LogisticProbe | OptionProbe) -> None:
    x, y = rows() if isinstance(probe, LogisticProbe) else options()
    assert probe.get_params() == {"l2": 0.2, "tolerance": 1e-5}
    twin = clone(probe).set_params(l2=0.5)
    assert (probe.l2, twin.l2) == (0.2, 0.5)
    kept_x, kept_y = x.copy(), y.copy()
    assert probe.fit(x, y) is probe
    first = probe.coef_.copy()
    np.testing.assert_array_equal(probe.fit(x, y).coef_, first)
    np.testing.assert_array_equal(x, kept_x)
    np.testing.assert_array_equal(y, kept_y)
    assert probe.n_features_in_ == x.shape[-1]
    np.testing.assert_allclose(probe.predict_proba(x).sum(1), 1)
    assert not hasattr(clone(probe), "coef_")


def test_labels_may_be_anything_and_pipelines_work() -> None:
    x, y = rows()
    names = np.array(["cow", "ant", "bee"])[y]
    probe = LogisticProbe(l2=0.1).fit(x, names)
    assert list(probe.classes_) == ["ant", "bee", "cow"]
    assert probe.score(x, names) > 0.8
    assert set(probe.predict(x)) == {"ant", "bee", "cow"}
    scores = cross_val_score(make_pipeline(StandardScaler(), LogisticProbe(l2=0.1)), x, names, cv=3)
    assert scores.mean() > 0.6
