import numpy as np
import pytest
from scipy.optimize import minimize_scalar
from scipy.special import log_softmax as scipy_log_softmax

from probekd.probes.calibrate import MAX_BETA, MIN_BETA, fit_temperature, gold_losses, log_softmax


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


def best_by_scipy(logits: np.ndarray, answers: np.ndarray, scale: float) -> float:
    found = minimize_scalar(
        lambda t: loss(logits, answers, scale * np.exp(t)), bounds=(-5, 5), method="bounded", options={"xatol": 1e-10}
    )
    return float(scale * np.exp(found.x))


@pytest.mark.parametrize("ragged", [False, True])
@pytest.mark.parametrize("scale", [1e-3, 0.1, 1.0, 30.0, 1e3])
@pytest.mark.parametrize("seed", range(4))
def test_temperature_is_the_one_that_scipy_finds(seed: int, scale: float, ragged: bool) -> None:
    logits, answers = drawn(seed, scale, ragged=ragged)
    found, best = float(fit_temperature(logits, answers)), best_by_scipy(logits, answers, scale)
    assert loss(logits, answers, found) <= loss(logits, answers, best) + 1e-10
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


def test_logits_that_never_err_are_sharpened_until_nothing_is_lost() -> None:
    answers = np.array([0, 1, 2, 1])
    temperature = float(fit_temperature(np.eye(3)[answers], answers))
    assert np.sqrt(2 / 9) / MAX_BETA <= temperature < 0.1  # sqrt(2/9): the spread of (1, 0, 0)
    assert loss(np.eye(3)[answers], answers, temperature) < 1e-9


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
