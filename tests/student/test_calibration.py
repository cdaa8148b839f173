from __future__ import annotations

import numpy as np
import pytest
from scipy.optimize import minimize_scalar
from scipy.special import log_softmax

from probekd.metrics import score
from probekd.student.calibration import calibrate_student, calibrated_log_loss, logit_scale, student_temperature
from probekd.targets import softmax


def rows(n: int, sharpness: float, seed: int = 0) -> tuple[list[np.ndarray], np.ndarray]:
    """Logits that are ``sharpness`` times those from which the answers are drawn; 2 to 4 options."""
    draw = np.random.default_rng(seed)
    logits = [draw.normal(size=2 + i % 3) * 1.5 for i in range(n)]
    answers = np.array([draw.choice(len(z), p=softmax(z)) for z in logits])
    return [(sharpness * z).astype(np.float32) for z in logits], answers


@pytest.mark.parametrize("sharpness", [0.4, 1.0, 5.0])
def test_the_temperature_undoes_sharpness(sharpness: float) -> None:
    assert student_temperature(*rows(20_000, sharpness)) == pytest.approx(sharpness, rel=0.05)


@pytest.mark.parametrize("n", [10, 200])
def test_the_temperature_is_that_of_the_rows_and_one_even_answer(n: int) -> None:
    logits, answers = rows(n, 3.0)

    def loss(log_t: float) -> float:
        by_row = [log_softmax(z.astype(float) / np.exp(log_t)) for z in logits]
        real = sum(-p[a] for p, a in zip(by_row, answers, strict=True))
        return float((real + np.mean([-p.mean() for p in by_row])) / (n + 1))

    oracle = np.exp(minimize_scalar(loss, bounds=(-5, 5), method="bounded", options={"xatol": 1e-8}).x)
    assert student_temperature(logits, answers) == pytest.approx(oracle, rel=1e-3)


def test_a_few_rows_without_an_error_do_not_make_a_student_certain() -> None:
    logits = [np.array([1.0, 0.0], dtype=np.float32)] * 12
    temperature = student_temperature(logits, np.zeros(12, dtype=int))
    assert softmax(logits[0] / temperature)[0] == pytest.approx((12 + 0.5) / 13, abs=1e-3)


def test_a_calibration_says_what_it_does() -> None:
    logits, answers = rows(500, 6.0)
    found = calibrate_student(logits, answers, "validation")
    before = score([softmax(z) for z in logits], answers.tolist())
    after = score([softmax(z / found.temperature) for z in logits], answers.tolist())
    assert (found.rows, found.n) == ("validation", 500)
    assert (found.nll_before, found.ece_before) == (before["nll"], before["ece"])
    assert (found.nll_after, found.ece_after) == (after["nll"], after["ece"])
    assert found.ece_after < found.ece_before / 3
    assert calibrated_log_loss(logits, answers) == found.nll_after


def test_the_log_loss_that_is_watched_does_not_punish_certainty() -> None:
    logits, answers = rows(300, 1.0)
    sharp = [4 * z for z in logits]
    assert calibrated_log_loss(sharp, answers) == pytest.approx(calibrated_log_loss(logits, answers), rel=1e-4)


def test_larger_logits_take_a_larger_temperature() -> None:
    logits, answers = rows(500, 1.0)
    larger = [3 * z + 7 for z in logits]
    growth = logit_scale(larger) / logit_scale(logits)
    assert growth == pytest.approx(3, rel=1e-5)
    found = calibrate_student(logits, answers, "held out")
    assert found.grown(growth).temperature == pytest.approx(student_temperature(larger, answers), rel=1e-3)
    assert (found.grown(growth).growth, found.grown(growth).nll_after) == (growth, found.nll_after)
