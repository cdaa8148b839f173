from math import comb, gamma

import numpy as np
import pytest
from scipy.stats import bootstrap, multinomial

from probekd.evaluation import paired
from probekd.evaluation.paired import (
    Comparison,
    bootstrap_interval,
    by_group,
    compare,
    proportions_interval,
    shared_training,
)

Rows = list[np.ndarray]


def sure(options: list[int], confidence: float = 0.8, k: int = 3) -> Rows:
    """Distributions that give ``confidence`` to the named option of each row."""
    return [np.where(np.arange(k) == o, confidence, (1 - confidence) / (k - 1)) for o in options]


def compared(a: Rows, b: Rows, answers: list[int], *, resamples: int = 500, seed: int = 0) -> dict[str, Comparison]:
    found = compare("test", ("a", "b"), (a, b), answers, resamples=resamples, seed=seed)
    return {c.metric: c for c in found}


def skewed(n: int, seed: int = 0) -> np.ndarray:
    return np.exp(np.random.default_rng(seed).normal(0, 1, n))


def half_width(differences: np.ndarray, *, resamples: int = 2000, seed: int = 0) -> float:
    low, high = bootstrap_interval(differences, resamples=resamples, seed=seed)
    assert (low + high) / 2 == pytest.approx(differences.mean())
    return (high - low) / 2


def test_interval_equals_resampling_row_by_row() -> None:
    differences = skewed(40)
    generator = np.random.default_rng(12)  # another seed: equal but for the resampling's own noise
    distances = []
    for _ in range(4000):
        drawn = differences[[int(generator.integers(40)) for _ in range(40)]]
        distances.append(abs(drawn.mean() - differences.mean()) / np.sqrt(drawn.var() / 40))
    expected = sorted(distances)[3800] * np.sqrt(differences.var() / 40)
    assert half_width(differences, resamples=20_000, seed=1) == pytest.approx(expected, rel=0.04)


def test_interval_equals_that_of_scipy_from_the_same_studentised_means() -> None:
    differences = skewed(60, 3)
    mean, error = differences.mean(), differences.std() / 60**0.5

    def distance(rows: np.ndarray, axis: int = -1) -> np.ndarray:
        return np.asarray(np.abs(rows.mean(axis) - mean) / (rows.std(axis) / 60**0.5))

    found = bootstrap(
        (differences,), distance, n_resamples=20_000, method="percentile", rng=np.random.default_rng(1), vectorized=True
    )
    expected = np.quantile(found.bootstrap_distribution, 0.95) * error
    assert half_width(differences, resamples=20_000) == pytest.approx(expected, rel=0.03)


def test_interval_of_skewed_differences_is_wider_than_the_normal_one() -> None:
    differences = skewed(60, 1)
    assert half_width(differences) > 1.05 * 1.96 * differences.std() / 60**0.5


def test_interval_is_finite_where_few_rows_differ_and_a_point_where_none_does() -> None:
    one = np.r_[1.0, np.zeros(99)]
    low, high = bootstrap_interval(one, resamples=500, seed=0)
    assert -0.1 < low < 0 < high < 0.1
    assert bootstrap_interval(np.full(10, 0.3), resamples=100, seed=0) == pytest.approx([0.3, 0.3])


def test_interval_does_not_depend_on_the_unit_or_the_place() -> None:
    differences = skewed(50)
    assert half_width(1e-6 * differences) == pytest.approx(1e-6 * half_width(differences), rel=1e-4)
    assert half_width(1000 + differences) == pytest.approx(half_width(differences), rel=1e-4)


def test_interval_of_many_rows_equals_the_normal_one() -> None:
    differences = np.random.default_rng(3).exponential(2, 2000)
    half = 1.96 * differences.std() / np.sqrt(2000)
    expected = [differences.mean() - half, differences.mean() + half]
    assert bootstrap_interval(differences, resamples=3000, seed=0) == pytest.approx(expected, abs=0.01)


def test_interval_covers_the_truth_about_as_often_as_it_says() -> None:
    generator = np.random.default_rng(4)
    intervals = [bootstrap_interval(generator.normal(1, 1, 50), resamples=300, seed=s) for s in range(300)]
    assert 0.90 < np.mean([low <= 1 <= high for low, high in intervals]) < 0.98
    # Where the percentile interval of 40 rows holds the truth 91 times in a hundred.
    intervals = [bootstrap_interval(generator.exponential(1, 40) ** 1.2, resamples=300, seed=s) for s in range(600)]
    truth = gamma(2.2)
    assert 0.92 < np.mean([low <= truth <= high for low, high in intervals]) < 0.98


@pytest.mark.parametrize(("only_a", "only_b", "n"), [(9, 2, 40), (0, 0, 50), (30, 1, 100), (5, 0, 5)])
def test_interval_of_proportions_is_that_of_rows_with_one_more_of_either_kind(only_a: int, only_b: int, n: int) -> None:
    rows = np.r_[np.ones(only_a + 1), -np.ones(only_b + 1), np.zeros(n - only_a - only_b)]
    half = 1.96 * rows.std() / np.sqrt(len(rows))
    expected = np.clip([rows.mean() - half, rows.mean() + half], -1, 1)
    assert proportions_interval(only_a, only_b, n) == pytest.approx(expected, abs=1e-4)


@pytest.mark.parametrize(("p_a", "p_b", "n"), [(0.15, 0.15, 50), (0.02, 0.01, 100), (0.3, 0.05, 100), (0.0, 0.05, 100)])
def test_interval_of_proportions_covers_the_truth(p_a: float, p_b: float, n: int) -> None:
    # Exactly: every pair of counts and its probability. The percentile interval of the second case holds it with 0.86.
    total = 0.0
    for a in range(n + 1):
        for b in range(n + 1 - a):
            low, high = proportions_interval(a, b, n)
            if low <= p_a - p_b <= high:
                total += float(multinomial.pmf([a, b, n - a - b], n, [p_a, p_b, 1 - p_a - p_b]))
    assert 0.93 < total <= 1


def test_interval_is_repeatable_and_independent_of_the_batches_it_is_made_in(monkeypatch: pytest.MonkeyPatch) -> None:
    differences = np.random.default_rng(5).normal(size=30)
    whole = bootstrap_interval(differences, resamples=500, seed=9)
    assert bootstrap_interval(differences, resamples=500, seed=9) == whole
    assert bootstrap_interval(differences, resamples=500, seed=10) != whole
    monkeypatch.setattr(paired, "ROWS_AT_ONCE", 30 * 7)
    assert bootstrap_interval(differences, resamples=500, seed=9) == whole


def test_one_row_more_than_fits_at_once_is_still_resampled(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(paired, "ROWS_AT_ONCE", 2)
    low, high = bootstrap_interval(np.array([0.0, 1.0, 2.0]), resamples=200, seed=0)
    assert low < 1 < high


@pytest.mark.parametrize(("only_a", "only_b"), [(9, 2), (0, 6), (4, 4), (1, 0)])
def test_mcnemar_is_the_exact_two_sided_binomial(only_a: int, only_b: int) -> None:
    both = 5
    answers = [0] * (only_a + only_b + both)
    a = sure([0] * only_a + [1] * only_b + [0] * both)
    b = sure([1] * only_a + [0] * only_b + [0] * both)
    n, least = only_a + only_b, min(only_a, only_b)
    by_hand = min(1.0, 2 * sum(comb(n, i) for i in range(least + 1)) / 2**n)
    found = compared(a, b, answers)["accuracy"]
    assert found.p_value == pytest.approx(by_hand)
    assert found.difference == pytest.approx((only_a - only_b) / len(answers))
    assert found.n == len(answers)


def test_the_better_predictor_has_more_hits_and_less_loss() -> None:
    answers = [i % 3 for i in range(60)]
    good = sure([a if i % 10 else (a + 1) % 3 for i, a in enumerate(answers)])
    poor = sure([a if i % 2 else (a + 1) % 3 for i, a in enumerate(answers)])
    found = compared(good, poor, answers)
    assert found["accuracy"].difference == pytest.approx(0.9 - 0.5)
    # Each of the rows that differ costs the poor one log(0.8 / 0.1).
    assert found["nll"].difference == pytest.approx(-0.4 * np.log(8))
    assert found["accuracy"].ci[0] > 0 > found["nll"].ci[1]
    assert found["accuracy"].p_value < 0.001 and found["nll"].p_value < 0.01
    back = compared(poor, good, answers)
    for metric in ("accuracy", "nll"):
        assert back[metric].difference == -found[metric].difference
        assert back[metric].p_value == pytest.approx(found[metric].p_value)
        assert back[metric].ci == pytest.approx([-v for v in found[metric].ci[::-1]], abs=1e-9)


def test_a_predictor_does_not_differ_from_itself() -> None:
    probs = sure([0, 1, 2, 0])
    found = compared(probs, probs, [0, 1, 1, 2])
    assert {(c.difference, c.p_value) for c in found.values()} == {(0.0, 1.0)}
    assert found["nll"].ci == [0.0, 0.0]
    low, high = found["accuracy"].ci  # four rows on which nothing differs leave much open
    assert low == -high < -0.1


def test_pairing_counts() -> None:
    # Rows differ far more in difficulty than the predictors do: unpaired, nothing could be told apart.
    generator = np.random.default_rng(6)
    p = generator.uniform(0.05, 0.9, 80)
    a, b = [np.array([v + 0.02, 0.98 - v]) for v in p], [np.array([v, 1 - v]) for v in p]
    found = compared(a, b, [0] * 80)["nll"]
    assert found.ci[1] < 0
    assert found.ci[1] - found.ci[0] < 0.2 * np.log(p).std()


def test_loss_p_value_agrees_with_the_interval_and_is_never_zero() -> None:
    generator = np.random.default_rng(7)
    for shift in (-0.3, -0.1, 0.0, 0.1, 0.3):
        p = np.clip(generator.uniform(0.2, 0.7, 60), 0, 1)
        q = np.clip(p * np.exp(shift + generator.normal(0, 0.4, 60)), 0.01, 0.99)
        a, b = [np.array([v, 1 - v]) for v in p], [np.array([v, 1 - v]) for v in q]
        found = compared(a, b, [0] * 60, resamples=2000)["nll"]
        outside = found.ci[0] > 0 or found.ci[1] < 0
        assert outside == (found.p_value < 0.05)
        assert 1 / 2001 <= found.p_value <= 1


def test_the_contracts_object() -> None:
    c = compared(sure([0, 1]), sure([1, 1]), [0, 1])["accuracy"]
    assert list(c.as_dict()) == ["split", "a", "b", "metric", "difference", "ci", "p_value", "n"]
    assert (c.as_dict()["split"], c.as_dict()["a"], c.as_dict()["b"]) == ("test", "a", "b")


def test_intervals_of_cross_fitted_predictions_are_wider_by_the_square_root_of_two_minus_one_fold() -> None:
    generator = np.random.default_rng(4)
    answers = generator.integers(0, 3, 90).tolist()
    a, b = sure(answers, 0.6), sure([int(o) for o in generator.integers(0, 3, 90)], 0.5)
    alone, crossed = (
        {c.metric: c for c in compare("train", ("a", "b"), (a, b), answers, resamples=400, seed=0, folds=folds)}
        for folds in (1, 5)
    )
    for metric in ("accuracy", "nll"):
        widths = [np.diff(found[metric].ci)[0] for found in (alone, crossed)]
        assert widths[1] == pytest.approx(1.8**0.5 * widths[0])
        assert alone[metric].difference == crossed[metric].difference


def test_a_p_value_of_cross_fitted_predictions_agrees_with_their_interval() -> None:
    generator = np.random.default_rng(5)
    found = []
    for _ in range(60):
        answers = generator.integers(0, 2, 60).tolist()
        a, b = ([np.array([1 - p, p]) for p in generator.uniform(0.2, 0.8, 60)] for _ in range(2))
        found += compare("train", ("a", "b"), (a, b), answers, resamples=400, seed=1, folds=5)
    nll = [c for c in found if c.metric == "nll"]
    for c in nll:
        assert (c.p_value < 0.045) <= (not c.ci[0] <= 0 <= c.ci[1]) <= (c.p_value < 0.055)


def test_predictors_that_never_saw_the_rows_are_not_widened() -> None:
    assert shared_training(1) == 1
    assert shared_training(5) == pytest.approx(1.3416, abs=1e-4)


def doubled(seed: int, copies: int) -> tuple[list[int], Rows, Rows, list[str]]:
    """Sixty rows, each of them so many times; two predictors of them; and which rows are the same."""
    generator = np.random.default_rng(seed)
    answers = generator.integers(0, 3, 60)
    a, b = (generator.dirichlet(np.ones(3) + 2 * np.eye(3)[o]) for o in answers), generator.dirichlet(np.ones(3), 60)
    a_rows = np.stack(list(a)).repeat(copies, axis=0)
    groups = [f"question {i}" for i in range(60) for _ in range(copies)]
    return answers.repeat(copies).tolist(), list(a_rows), list(b.repeat(copies, axis=0)), groups


def test_rows_that_are_each_a_group_are_as_without_groups() -> None:
    answers, a, b, groups = doubled(0, 1)
    plain = compare("train", ("a", "b"), (a, b), answers, resamples=300, seed=0)
    grouped = compare("train", ("a", "b"), (a, b), answers, resamples=300, seed=0, groups=groups)
    for one, other in zip(plain, grouped, strict=True):
        assert other.ci == pytest.approx(one.ci, abs=1e-6)
        assert (other.difference, other.n) == (pytest.approx(one.difference), one.n)


def test_copies_of_rows_leave_an_interval_as_wide_as_it_was() -> None:
    (answers, a, b, groups), (more, a4, b4, fours) = doubled(1, 1), doubled(1, 4)
    once = compare("train", ("a", "b"), (a, b), answers, resamples=300, seed=0, groups=groups)
    copied = compare("train", ("a", "b"), (a4, b4), more, resamples=300, seed=0, groups=fours)
    blind = compare("train", ("a", "b"), (a4, b4), more, resamples=300, seed=0)
    for one, four, naive in zip(once, copied, blind, strict=True):
        assert (one.n, four.n) == (60, 240) and four.difference == pytest.approx(one.difference)
        widths = [np.diff(c.ci)[0] for c in (one, four, naive)]
        assert widths[1] == pytest.approx(widths[0], rel=0.08)  # of accuracy, a row more weighs less among more rows
        assert widths[2] == pytest.approx(widths[0] / 2, rel=0.08)


def test_groups_of_any_size_keep_the_mean_and_the_variance_of_whole_groups() -> None:
    generator = np.random.default_rng(6)
    groups = [f"{g}" for g in range(400) for _ in range(1 + g % 3)]
    sizes = np.array([1 + g % 3 for g in range(400)])
    found = []
    for _ in range(400):
        shared = generator.normal(size=400).repeat(sizes)
        differences = 0.1 + shared + 0.3 * generator.normal(size=len(groups))
        found.append(
            (differences.mean(), by_group(differences, groups).std() / 20, by_group(differences, groups).mean())
        )
    means, errors, kept = np.array(found).T
    np.testing.assert_allclose(kept, means)
    assert errors.mean() == pytest.approx(means.std(), rel=0.1)
