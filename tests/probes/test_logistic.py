from __future__ import annotations

import numpy as np
import pytest
import torch
from readings import centred, features_of, option_scores, options, rows, sklearn_logits, training_sets
from scipy.optimize import minimize
from scipy.special import log_softmax
from sklearn.preprocessing import StandardScaler

from probekd.probes import features, logistic
from probekd.probes.features import Features, LinearFit
from probekd.probes.logistic import LogisticProbe, OptionProbe, solve

L2 = [0.01, 0.3, 3.0]
SHAPES = ["classes", "options"]


def made(shape: str, filler: float = 0.0, **size: int) -> tuple[np.ndarray, np.ndarray, Features]:
    x, y = rows(**size) if shape == "classes" else options(**size)
    return x, y, features_of(x, 3, filler)


def raw(x: np.ndarray) -> np.ndarray:
    return np.nan_to_num(x)


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


def test_each_problem_of_a_batch_is_scikit_learns_on_its_own_training_rows() -> None:
    x, y, held = made("classes")
    train = training_sets(len(x))
    fit = solve(held, y, train, L2, tolerance=1e-9)
    assert fit.weight.shape == (9, 12, 3) and fit.bias.shape == (9, 3)
    for number, ours in enumerate(fit.logits(x)):
        mask, l2 = train[number // 3], L2[number % 3]
        expected = sklearn_logits(x[mask], y[mask], l2, x)
        np.testing.assert_allclose(centred(ours), centred(expected), rtol=1e-4, atol=2e-5)


def test_a_k_way_probe_leaves_options_that_a_row_lacks_out_of_the_rows_softmax() -> None:
    x, y, _ = made("classes")
    present = np.random.default_rng(8).random((len(x), 3)) < 0.7
    present[np.arange(len(x)), y] = True
    everyone = np.ones((1, len(x)), dtype=bool)
    fit = solve(Features(x.astype(np.float32), present, torch.float64), y, everyone, (0.1,), tolerance=1e-9)
    scaled = StandardScaler().fit_transform(x.astype(np.float32))

    def objective(point: np.ndarray) -> float:
        w, b = point[:-3].reshape(-1, 3), point[-3:]
        logp = log_softmax(np.where(present, scaled @ w + b, -np.inf), axis=1)
        return float(-logp[np.arange(len(x)), y].mean() + 0.05 * (w**2).sum())

    best = minimize(objective, np.zeros(scaled.shape[1] * 3 + 3), method="BFGS", options={"gtol": 1e-9})
    expected = scaled @ best.x[:-3].reshape(-1, 3) + best.x[-3:]
    np.testing.assert_allclose(centred(fit.logits(x)[0]), centred(expected), atol=1e-3)


def test_each_option_problem_of_a_batch_is_brute_forced_on_its_own_training_rows() -> None:
    x, y, held = made("options", filler=1e6)  # what stands in absent places must not matter
    train = training_sets(len(x))
    fit = solve(held, y, train, L2, tolerance=1e-9)
    assert fit.weight.shape == (9, 6, 1)
    for number, ours in enumerate(fit.logits(raw(x))):
        mask, l2 = train[number // 3], L2[number % 3]
        expected = option_scores(x[mask], y[mask], l2, x)
        ours = np.where(np.isnan(expected), np.nan, ours)
        np.testing.assert_allclose(centred(ours), centred(expected), rtol=1e-4, atol=2e-5)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("shape", SHAPES)
def test_the_penalised_loss_at_the_default_tolerance_is_the_least_there_is(shape: str, dtype: torch.dtype) -> None:
    x, y, _ = made(shape, n=200)
    present = np.ones((200, 3), dtype=bool) if shape == "classes" else ~np.isnan(x).any(2)
    held = Features(raw(x).astype(np.float32), present, dtype)
    train = training_sets(200)
    fit = solve(held, y, train, L2, tolerance=1e-5)
    exact = solve(features_of(x, 3), y, train, L2, tolerance=1e-11)
    assert fit.weight.dtype == dtype

    def loss(of: LinearFit, number: int) -> float:
        mask, l2 = train[number // 3], L2[number % 3]
        said = np.where(present, of.logits(raw(x))[number], -np.inf).astype(np.float64)
        states = x[mask] if shape == "classes" else x[mask][present[mask]]
        w = of.weight[number].double().numpy() * StandardScaler().fit(states).scale_[:, None]
        return float(-log_softmax(said[mask], axis=1)[np.arange(mask.sum()), y[mask]].mean() + l2 / 2 * (w**2).sum())

    for number in range(9):
        assert loss(fit, number) <= loss(exact, number) * (1 + 1e-4)
        assert loss(fit, number) >= loss(exact, number) * (1 - 1e-4)


@pytest.mark.parametrize("shape", SHAPES)
def test_a_batch_gives_what_each_problem_gives_alone(shape: str) -> None:
    x, y, held = made(shape)
    train = training_sets(len(x))
    together = solve(held, y, train, L2, tolerance=1e-8)
    for t in range(3):
        for s, l2 in enumerate(L2):
            alone = solve(held, y, train[t : t + 1], (l2,), tolerance=1e-8)
            torch.testing.assert_close(together.weight[3 * t + s], alone.weight[0], rtol=1e-5, atol=1e-7)
            torch.testing.assert_close(together.bias[3 * t + s], alone.bias[0], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("shape", SHAPES)
def test_wide_states_of_which_only_leading_axes_are_known_end_at_the_same_minimum(
    shape: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    x, y, held = made(shape, d=20)
    train = training_sets(len(x))
    all_axes = solve(held, y, train, L2, tolerance=1e-9)
    monkeypatch.setattr(features, "MOST_AXES", 8)
    monkeypatch.setattr(features, "LEADING_AXES", 4)
    _, _, wide = made(shape, d=20)
    few_axes = solve(wide, y, train, L2, tolerance=1e-9)
    assert wide.principal_axes[0].shape == (20, 4)
    assert wide.principal_axes[2] > 0
    np.testing.assert_allclose(few_axes.logits(raw(x)), all_axes.logits(raw(x)), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("shape", SHAPES)
def test_streamed_states_give_what_states_in_memory_give(shape: str, monkeypatch: pytest.MonkeyPatch) -> None:
    x, y, held = made(shape)
    train = training_sets(len(x))
    in_memory = solve(held, y, train, L2, tolerance=1e-9)
    monkeypatch.setattr(features, "KEPT_BYTES", 0)
    monkeypatch.setattr(features, "BLOCK_BYTES", 7 * raw(x)[0].nbytes)
    _, _, streamed = made(shape)
    blocks = [rows_of for rows_of, _ in streamed.blocks()]
    assert len(blocks) == -(-len(x) // 7)
    found = solve(streamed, y, train, L2, tolerance=1e-9)
    np.testing.assert_allclose(found.logits(raw(x)), in_memory.logits(raw(x)), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("tolerance", [1e-2, 1e-6])
def test_every_gradient_falls_to_the_tolerance(shape: str, tolerance: float, monkeypatch: pytest.MonkeyPatch) -> None:
    _, y, held = made(shape)
    norms: list[tuple[torch.Tensor, torch.Tensor]] = []
    original = logistic.minimise

    def watched(objective, start, **rest):  # type: ignore[no-untyped-def]
        found = original(objective, start, **rest)
        every = torch.arange(len(start))
        norms.append((objective(start, every)[1].norm(dim=1), objective(found, every)[1].norm(dim=1)))
        return found

    monkeypatch.setattr(logistic, "minimise", watched)
    solve(held, y, training_sets(len(y)), L2, tolerance=tolerance)
    ((first, last),) = norms
    assert (last <= tolerance * first).all()
    assert (last > tolerance * first * 1e-6).any()  # and no further than asked


def test_the_preconditioner_pays_where_scales_differ(monkeypatch: pytest.MonkeyPatch) -> None:
    draw = np.random.default_rng(0)
    x = draw.normal(size=(300, 40)) @ (draw.normal(size=(40, 40)) * np.logspace(0, -3, 40)[:, None])
    y = (x @ draw.normal(size=(40, 3)) + draw.normal(size=(300, 3))).argmax(1)
    calls: list[int] = []
    original = logistic.minimise

    def counted(objective, start, *, precondition, tolerance, **_):  # type: ignore[no-untyped-def]
        for guess in (precondition, None):
            calls.append(0)

            def seen(points, which):  # type: ignore[no-untyped-def]
                calls[-1] += 1
                return objective(points, which)

            found = original(seen, start, precondition=guess, tolerance=tolerance)
        return found

    monkeypatch.setattr(logistic, "minimise", counted)
    solve(features_of(x, 3), y, np.ones((1, 300), dtype=bool), (0.001,), tolerance=1e-6)
    assert calls[0] < calls[1] / 2


def test_rows_outside_the_training_set_play_no_part() -> None:
    x, y = rows()
    train = np.zeros((1, len(x)), dtype=bool)
    train[:, :50] = True
    other_x, other_y = x.copy(), y.copy()
    other_x[50:] = other_x[50:] * 5 - 40
    other_y[50:] = (other_y[50:] + 1) % 3
    one, two = (
        solve(features_of(a, 3), b, train, (0.1,), tolerance=1e-10).logits(x) for a, b in ((x, y), (other_x, other_y))
    )
    np.testing.assert_allclose(one, two, rtol=1e-4, atol=1e-5)


def test_float32_is_close_to_float64() -> None:
    x, y = rows()
    fits = [
        solve(
            Features(x.astype(kind), np.ones((len(x), 3), dtype=bool), dtype),
            y,
            np.ones((1, len(x)), dtype=bool),
            (0.1,),
            tolerance=1e-4,
        ).logits(x.astype(kind))[0]
        for dtype, kind in ((torch.float32, np.float32), (torch.float64, np.float64))
    ]
    np.testing.assert_allclose(np.exp(log_softmax(fits[0], 1)), np.exp(log_softmax(fits[1], 1)), rtol=0, atol=2e-3)
