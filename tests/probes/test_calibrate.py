import numpy as np
import pytest
import torch
from scipy.optimize import minimize, minimize_scalar
from scipy.special import log_softmax as scipy_log_softmax

from probekd.probes.calibrate import (
    LAPSE_L2,
    MAX_BETA,
    MIN_BETA,
    SHARPEST,
    VECTOR_L2,
    Calibration,
    calibrate,
    fit_temperature,
    gold_losses,
    lapsing,
    log_softmax,
    one_temperature,
    sharpness,
    vector_scaling,
)


def drawn(seed: int, scale: float, *, ragged: bool, n: int = 80) -> tuple[np.ndarray, np.ndarray]:
    """Logits (n, 5) that are too sharp or too flat by ``scale`` for the answers drawn from them."""
    generator = np.random.default_rng(seed)
    natural = generator.normal(size=(n, 5)) * generator.uniform(0.5, 3)
    if ragged:
        natural[np.arange(5) >= generator.integers(2, 6, n)[:, None]] = -np.inf
    probs = np.exp(scipy_log_softmax(natural, axis=1))
    return natural * scale, np.array([generator.choice(5, p=p) for p in probs])


def loss(logits: np.ndarray, answers: np.ndarray, temperature: float) -> float:
    return float(-scipy_log_softmax(logits / temperature, axis=1)[np.arange(len(answers)), answers].mean())


def penalised(logits: np.ndarray, answers: np.ndarray, temperature: float, even_rows: float) -> float:
    """Sum of losses, and so many rows more that are the mean of the given ones under every answer that these can have."""
    logp = scipy_log_softmax(logits / temperature, axis=1)
    even = np.mean([-row[np.isfinite(row)].mean() for row in logp])
    return float(-logp[np.arange(len(answers)), answers].sum() + even_rows * even)


def best_by_scipy(logits: np.ndarray, answers: np.ndarray, scale: float, even_rows: float = 1) -> float:
    found = minimize_scalar(
        lambda t: penalised(logits, answers, scale * np.exp(t), even_rows),
        bounds=(-5, 5),
        method="bounded",
        options={"xatol": 1e-10},
    )
    return float(scale * np.exp(found.x))


@pytest.mark.parametrize("ragged", [False, True])
@pytest.mark.parametrize("scale", [1e-3, 0.1, 1.0, 30.0, 1e3])
@pytest.mark.parametrize("even_rows", [0, 1, 20])
@pytest.mark.parametrize("seed", range(4))
def test_temperature_is_the_one_that_scipy_finds(seed: int, even_rows: float, scale: float, ragged: bool) -> None:
    logits, answers = drawn(seed, scale, ragged=ragged)
    found = float(fit_temperature(logits, answers, even_rows=even_rows))
    best = best_by_scipy(logits, answers, scale, even_rows)
    assert penalised(logits, answers, found, even_rows) <= penalised(logits, answers, best, even_rows) + 1e-8
    assert found == pytest.approx(best, rel=1e-4)


def test_many_sets_at_once_equal_one_at_a_time() -> None:
    _, answers = drawn(0, 1.0, ragged=False)
    sets = np.stack([drawn(0, s, ragged=False)[0] + 0.1 * s * i for i, s in enumerate((1e-3, 1, 1e3, 5, 0.2, 40))])
    sets[3, :, 4] = np.where(answers == 4, sets[3, :, 4], -np.inf)
    together = fit_temperature(sets.reshape(2, 3, *sets.shape[1:]), answers)
    assert together.shape == (2, 3)
    np.testing.assert_allclose(together.ravel(), [fit_temperature(s, answers) for s in sets], rtol=1e-12)


def test_a_constant_added_to_a_row_changes_nothing() -> None:
    logits, answers = drawn(1, 1.0, ragged=True)
    shift = np.linspace(-300, -100, len(logits))[:, None]  # log-likelihoods of whole options lie this low
    assert float(fit_temperature(logits + shift, answers)) == pytest.approx(
        float(fit_temperature(logits, answers)), rel=1e-6
    )


def test_float32_logits_are_good_enough() -> None:
    logits, answers = drawn(2, 1.0, ragged=True)
    found = float(fit_temperature(logits.astype(np.float32), answers))
    assert found == pytest.approx(best_by_scipy(logits, answers, 1.0), rel=1e-4)


def test_equal_logits_give_a_finite_temperature_and_chance_loss() -> None:
    answers = np.array([0, 1, 2, 0])
    temperature = float(fit_temperature(np.full((4, 3), 7.0), answers))
    assert np.isfinite(temperature) and temperature > 0
    assert loss(np.full((4, 3), 7.0), answers, temperature) == pytest.approx(np.log(3))


def test_logits_that_never_err_are_sharpened_no_further_than_one_even_row_allows() -> None:
    answers = np.arange(100) % 3
    logits = np.eye(3)[answers]
    temperature = float(fit_temperature(logits, answers))
    # By the rule of succession: of 101 rows two thirds of one have another answer, half of that each of the two.
    wrong = 1 / 3 / 101
    assert loss(logits, (answers + 1) % 3, temperature) == pytest.approx(-np.log(wrong), abs=1e-3)
    assert loss(logits, answers, temperature) == pytest.approx(-np.log1p(-2 * wrong), rel=1e-3)


def test_without_even_rows_logits_that_never_err_fall_to_the_bound() -> None:
    answers = np.array([0, 1, 2, 1])
    temperature = float(fit_temperature(np.eye(3)[answers], answers, even_rows=0))
    assert np.sqrt(2 / 9) / MAX_BETA <= temperature < 0.1  # sqrt(2/9): the spread of (1, 0, 0)


def test_logits_that_always_err_are_flattened_to_the_bound() -> None:
    answers = np.array([0, 1, 2, 1])
    logits = -np.eye(3)[answers]
    temperature = float(fit_temperature(logits, answers))
    assert temperature == pytest.approx(np.sqrt(2 / 9) / MIN_BETA, rel=1e-3)
    assert loss(logits, answers, temperature) == pytest.approx(np.log(3), abs=1e-2)


def test_log_softmax_equals_scipy_and_keeps_minus_infinity() -> None:
    logits, _ = drawn(3, 50.0, ragged=True)
    np.testing.assert_allclose(log_softmax(logits), scipy_log_softmax(logits, axis=1), rtol=1e-12)
    assert (np.isneginf(log_softmax(logits)) == np.isneginf(logits)).all()


def test_gold_losses_pick_the_gold_option_of_every_set() -> None:
    logits, answers = drawn(4, 1.0, ragged=True)
    sets = np.stack([logits, 2 * logits, logits / 3])
    found = gold_losses(sets, answers)
    assert found.shape == (3, len(answers))
    for row, one in zip(found, sets, strict=True):
        np.testing.assert_allclose(row, -scipy_log_softmax(one, axis=1)[np.arange(len(answers)), answers], rtol=1e-12)


# ---- vector scaling -----------------------------------------------------------------------------------------------


def biased(seed: int, n: int, bias: float) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Logits (n, 3) that are right, but for what is added to class 2; answers; folds."""
    logits, answers = drawn(seed, 2.0, ragged=False, n=n)
    return logits + bias * (np.arange(5) == 2), answers, np.arange(n) % 5


@pytest.mark.parametrize("seed", range(3))
def test_vector_scaling_is_the_minimum_that_scipy_finds(seed: int) -> None:
    logits, answers, _ = biased(seed, 120, 3.0)
    beta = one_temperature(logits, answers).scale[0]
    z = logits * beta

    def objective(point: np.ndarray) -> float:
        said = z * (1 + point[:5]) + point[5:]
        return penalised(said, answers, 1.0, even_rows=1) / 120 + VECTOR_L2 / 2 * point @ point

    best = minimize(objective, np.zeros(10), method="BFGS", options={"gtol": 1e-8})
    found = vector_scaling(logits, answers)
    ours = np.concatenate([found.scale / beta - 1, found.shift])
    assert objective(ours) <= best.fun + 1e-9
    np.testing.assert_allclose(ours, best.x, atol=1e-4)


@pytest.mark.parametrize("n", [60, 400])
def test_no_class_is_favoured_where_a_temperature_is_all_that_is_wrong(n: int) -> None:
    kinds = [calibrate(*biased(seed, n, 0.0)).kind for seed in range(5)]
    assert kinds.count("vector scaling") <= 2  # a standard error is passed by chance now and then
    logits, answers, _ = biased(0, n, 0.0)
    plain = one_temperature(logits, answers)
    assert plain.kind == "temperature" and (plain.scale == 1 / fit_temperature(logits, answers)).all()
    np.testing.assert_allclose(plain.apply(logits), logits / fit_temperature(logits, answers))


def test_vector_scaling_is_chosen_where_a_class_is_favoured() -> None:
    for seed in range(3):
        logits, answers, folds = biased(seed, 300, 6.0)
        found = calibrate(logits, answers, folds)
        assert found.kind == "vector scaling"
        unasked = calibrate(logits, answers, folds, vector=False)
        assert unasked.kind != "vector scaling" and unasked.lapse == lapsing(logits, answers).lapse
        new, gold, _ = biased(seed + 50, 2000, 6.0)
        assert (
            gold_losses(found.apply(new), gold).mean()
            < gold_losses(one_temperature(logits, answers).apply(new), gold).mean()
        )


def test_rows_that_lack_options_favour_no_place() -> None:
    logits, answers, folds = biased(0, 300, 6.0)
    answers[7] = 0
    logits[7, 4] = -np.inf
    assert calibrate(logits, answers, folds).kind == "temperature and lapse"


def test_logits_that_never_err_are_calibrated_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    answers = np.arange(60) % 3
    logits = 8 * np.eye(3)[answers] + np.random.default_rng(0).normal(size=(60, 3))
    calls: list[int] = []
    original = torch.log_softmax
    monkeypatch.setattr(torch, "log_softmax", lambda *a, **k: (calls.append(1), original(*a, **k))[1])
    found = calibrate(logits, answers, np.arange(60) % 5)
    assert gold_losses(found.apply(logits), (answers + 1) % 3).mean() < np.log(3 * 61) + 0.5
    assert len(calls) < 200  # of vector scaling, and losses


def test_rows_of_any_width_are_calibrated() -> None:
    found = Calibration(scale=np.array([1.0, 2.0, 3.0]), shift=np.array([0.0, 0.5, 1.0]))
    np.testing.assert_allclose(found.apply(np.ones(2)), [1, 2.5])
    np.testing.assert_allclose(found.apply(np.ones((2, 5))), [[1, 2.5, 4, 2, 2]] * 2)


def test_a_mean_of_noisy_models_is_sharpened_by_what_its_best_temperature_says() -> None:
    generator = np.random.default_rng(5)
    signal, answers = drawn(5, 1.0, ragged=True, n=2000)
    each = signal + generator.normal(0, 0.7, (4, *signal.shape))
    temperatures = [best_by_scipy(z, answers, 1.0) for z in each]
    together = best_by_scipy(each.mean(0), answers, 1.0)
    found = sharpness(each, each.mean(0), answers)
    assert found == pytest.approx(np.mean(temperatures) / together, rel=1e-3)
    assert 1.1 < found < 1.5


def test_equal_models_are_not_sharpened_and_flawless_ones_only_so_far() -> None:
    logits, answers = drawn(6, 1.0, ragged=False, n=500)
    assert sharpness(np.stack([logits] * 3), logits, answers) == pytest.approx(1)
    right = 3 * np.eye(3)[np.arange(30) % 3]
    wrong_once = np.stack([right, right])
    wrong_once[0, 0], wrong_once[1, 1] = wrong_once[0, 0, ::-1], wrong_once[1, 1, ::-1]
    assert sharpness(wrong_once, wrong_once.mean(0), np.arange(30) % 3) <= SHARPEST


# ---- lapses -------------------------------------------------------------------------------------------------------


def lapsed(seed: int, n: int, lapse: float, *, ragged: bool = False) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Logits (n, 5) that are right but for a share of the rows, whose answers have nothing to do with them."""
    generator = np.random.default_rng(seed + 100)
    logits = 3 * generator.normal(size=(n, 5))
    if ragged:
        logits[np.arange(5) >= generator.integers(2, 6, n)[:, None]] = -np.inf
    even = np.where(np.isfinite(logits), 0.0, -np.inf)
    said = np.where(generator.random(n)[:, None] < lapse, even, logits)
    answers = np.array([generator.choice(5, p=np.exp(row)) for row in scipy_log_softmax(said, axis=1)])
    return 2 * logits, answers, np.arange(n) % 5


@pytest.mark.parametrize("ragged", [False, True])
@pytest.mark.parametrize("lapse", [0.05, 0.3])
def test_a_lapse_is_the_minimum_that_scipy_finds(lapse: float, ragged: bool) -> None:
    logits, answers, _ = lapsed(0, 150, lapse, ragged=ragged)
    beta = one_temperature(logits, answers).scale[0]

    def objective(point: np.ndarray) -> float:
        p = np.exp(scipy_log_softmax(logits * beta * np.exp(point[0]), axis=1))
        rate = 1 / (1 + np.exp(-point[1]))
        there = np.isfinite(logits)
        mixed = np.where(there, (1 - rate) * p + rate / there.sum(1, keepdims=True), 0)
        with np.errstate(divide="ignore"):
            return penalised(np.log(mixed), answers, 1.0, even_rows=1) / 150 + LAPSE_L2 / 2 * point[0] ** 2

    starts = ([0.0, -1.0], [0.0, -3.0])
    fits = [minimize(objective, s, method="Nelder-Mead", options={"xatol": 1e-8, "fatol": 1e-12}) for s in starts]
    best = min(fits, key=lambda fit: fit.fun)
    found = lapsing(logits, answers)
    assert found.kind == "temperature and lapse"
    assert (
        objective(np.array([np.log(found.scale[0] / beta), np.log(found.lapse / (1 - found.lapse))])) <= best.fun + 1e-9
    )
    np.testing.assert_allclose(found.scale, beta * np.exp(best.x[0]), rtol=1e-3)
    assert found.lapse == pytest.approx(1 / (1 + np.exp(-best.x[1])), abs=1e-4)
    assert 0.2 * lapse < found.lapse < 2 * lapse + 0.05


def test_what_is_applied_is_a_mixture_over_a_rows_own_options() -> None:
    logits, _ = drawn(3, 1.0, ragged=True)
    found = Calibration(scale=np.full(5, 2.0), shift=np.zeros(5), lapse=0.2)
    there = np.isfinite(logits)
    expected = 0.8 * np.exp(scipy_log_softmax(2 * logits, axis=1)) + 0.2 * there / there.sum(1, keepdims=True)
    np.testing.assert_allclose(np.exp(found.apply(logits)), expected, rtol=1e-12)
    assert (np.isneginf(found.apply(logits)) == ~there).all()
    softer = found.softened(4.0)
    assert (softer.scale[0], softer.lapse) == (0.5, 0.2)
    nowhere = np.full((1, 5), -np.inf)
    assert np.isneginf(found.apply(nowhere)).all()


def test_a_lapse_takes_sure_errors_on_itself_and_is_small_where_there_are_none() -> None:
    for seed in range(3):
        logits, answers, folds = lapsed(seed, 600, 0.15)
        found = calibrate(logits, answers, folds)
        assert found.kind == "temperature and lapse" and 0.05 < found.lapse < 0.3
        new, gold, _ = lapsed(seed + 50, 3000, 0.15)
        plain = one_temperature(logits, answers).apply(new)
        assert gold_losses(found.apply(new), gold).mean() < gold_losses(plain, gold).mean() - 0.01
        assert lapsing(*lapsed(seed, 600, 0.0)[:2]).lapse < 0.02


def test_logits_that_never_err_get_a_small_lapse_and_stay_finite() -> None:
    answers = np.arange(60) % 3
    found = lapsing(8 * np.eye(3)[answers] + np.random.default_rng(0).normal(size=(60, 3)), answers)
    assert 0 < found.lapse < 0.05 and np.isfinite(found.scale).all()
