import math

import numpy as np
import pytest
from scipy.stats import binomtest
from sklearn.metrics import f1_score, log_loss

from probekd.metrics import correct, expected_calibration_error, log_losses, macro_f1, score, wilson

# Four rows with 2, 3, 3 and 4 options; the top options are 0, 2, 1 and 0 (a tie), the gold ones 0, 2, 0 and 0.
PROBS = [np.array(p) for p in ([0.9, 0.1], [0.2, 0.3, 0.5], [0.25, 0.75, 0.0], [0.3, 0.3, 0.2, 0.2])]
ANSWERS = [0, 2, 0, 0]


def drawn(seed: int, *, ragged: bool) -> tuple[list[np.ndarray], list[int]]:
    """Random distributions of 2 to 5 options (or 4), and answers drawn from flatter ones."""
    generator = np.random.default_rng(seed)
    probs = [generator.dirichlet(np.full(generator.integers(2, 6) if ragged else 4, 0.4)) for _ in range(200)]
    return probs, [int(generator.choice(len(p), p=(p + 0.2) / (p + 0.2).sum())) for p in probs]


def second_opinion(probs: list[np.ndarray], answers: list[int]) -> dict[str, float]:
    """The contract's definitions once more, row by row and bin by bin, in plain Python."""
    n = len(probs)
    tops = [max(range(len(p)), key=lambda i: p[i]) for p in probs]
    bins: dict[int, list[tuple[float, bool]]] = {}
    for p, top, a in zip(probs, tops, answers, strict=True):
        bins.setdefault(min(14, math.floor(15 * p[top])), []).append((p[top], top == a))
    gaps = [abs(sum(h for _, h in b) / len(b) - sum(c for c, _ in b) / len(b)) * len(b) / n for b in bins.values()]
    f1 = []
    for c in {*tops, *answers}:
        both = sum(t == c == a for t, a in zip(tops, answers, strict=True))
        precision, recall = both / max(1, tops.count(c)), both / max(1, answers.count(c))
        f1.append(0.0 if both == 0 else 2 * precision * recall / (precision + recall))
    return {
        "accuracy": sum(t == a for t, a in zip(tops, answers, strict=True)) / n,
        "nll": -sum(math.log(max(p[a], 1e-12)) for p, a in zip(probs, answers, strict=True)) / n,
        "brier": sum(sum((q - (i == a)) ** 2 for i, q in enumerate(p)) for p, a in zip(probs, answers, strict=True))
        / n,
        "ece": sum(gaps),
        "macro_f1": sum(f1) / len(f1),
    }


def test_scores_of_four_rows_computed_by_hand() -> None:
    scores = score(PROBS, ANSWERS)
    assert scores["n"] == 4
    assert scores["accuracy"] == 0.75
    assert scores["nll"] == pytest.approx(-(math.log(0.9) + math.log(0.5) + math.log(0.25) + math.log(0.3)) / 4)
    # (0.01 + 0.01) + (0.04 + 0.09 + 0.25) + (0.5625 + 0.5625) + (0.49 + 0.09 + 0.04 + 0.04)
    assert scores["brier"] == pytest.approx((0.02 + 0.38 + 1.125 + 0.66) / 4)
    # Every row has a bin of its own: |1 - 0.9|, |1 - 0.5|, |0 - 0.75|, |1 - 0.3|.
    assert scores["ece"] == pytest.approx((0.1 + 0.5 + 0.75 + 0.7) / 4)
    # Class 0: 2 hits, 2 predicted, 3 gold -> 4/5; class 1: predicted, never gold -> 0; class 2: 1.
    assert scores["macro_f1"] == pytest.approx((0.8 + 0 + 1) / 3)


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("ragged", [False, True])
def test_scores_equal_a_second_implementation(seed: int, ragged: bool) -> None:
    probs, answers = drawn(seed, ragged=ragged)
    scores = score(probs, answers)
    for name, value in second_opinion(probs, answers).items():
        assert scores[name] == pytest.approx(value, abs=1e-12), name  # type: ignore[literal-required]


def test_scores_equal_scikit_learn_where_it_has_them() -> None:
    probs, answers = drawn(7, ragged=False)
    p, a = np.stack(probs), np.array(answers)
    scores = score(probs, answers)
    assert scores["nll"] == pytest.approx(log_loss(a, p, labels=range(4)))
    assert scores["macro_f1"] == pytest.approx(f1_score(a, p.argmax(1), average="macro"))
    assert scores["brier"] == pytest.approx(((p - np.eye(4)[a]) ** 2).sum(1).mean())


def test_the_first_option_wins_a_tie() -> None:
    tied = [np.array([0.2, 0.4, 0.4])] * 2
    assert correct(tied, [1, 2]).tolist() == [True, False]


def test_log_loss_of_a_gold_option_with_probability_zero_is_finite() -> None:
    assert log_losses([np.array([1.0, 0.0])], [1])[0] == pytest.approx(12 * math.log(10))


@pytest.mark.parametrize(("hits", "n"), [(8, 10), (0, 5), (5, 5), (517, 1000)])
def test_wilson_equals_scipy(hits: int, n: int) -> None:
    interval = binomtest(hits, n).proportion_ci(method="wilson")
    assert wilson(hits, n) == pytest.approx([interval.low, interval.high], abs=1e-12)
    assert score([np.array([1.0, 0.0])] * n, [0] * hits + [1] * (n - hits))["accuracy_ci"] == wilson(hits, n)


def test_calibration_error_pools_a_bin_before_it_takes_the_gap() -> None:
    # 0.61 and 0.65 share bin 9 and cancel in part; 1.0 belongs to the last bin, not to one of its own.
    confidence, hits = np.array([0.61, 0.65, 1.0, 0.95]), np.array([True, False, False, True])
    assert expected_calibration_error(confidence, hits) == pytest.approx((abs(1 - 1.26) + abs(1 - 1.95)) / 4)


def test_calibration_error_has_fifteen_bins() -> None:
    # 0.95 is in the last of 15 bins with 0.99 but would be alone in 20; 0.62 and 0.58 would share one of 10.
    confidence, hits = np.array([0.95, 0.99, 0.62, 0.58]), np.array([True, False, True, False])
    assert expected_calibration_error(confidence, hits) == pytest.approx((abs(1 - 1.94) + 0.38 + 0.58) / 4)


def test_macro_f1_leaves_out_classes_that_never_occur() -> None:
    assert macro_f1(np.array([0, 0, 5]), np.array([0, 5, 5])) == pytest.approx(2 / 3)
