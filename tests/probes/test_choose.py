import numpy as np
import pytest

from probekd.probes.calibrate import (
    Calibration,
    fit_temperature,
    gold_losses,
    log_softmax,
    one_temperature,
    vector_scaling,
)
from probekd.probes.choose import LUCK, Choice, RowLosses, choose, flattery_inside, join, lowest, row_losses
from probekd.probes.crossfit import CrossFit, untrained


def synthetic(
    seed: int, *, candidates: int, n: int, k: int = 3, strength: float = 1.5
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Equally good candidates: logits (C, n, K) that favour the gold option by ``strength`` under noise of size one."""
    generator = np.random.default_rng(seed)
    answers = generator.integers(0, k, n)
    logits = strength * np.eye(k)[answers] + generator.normal(size=(candidates, n, k))
    return logits, answers, np.arange(n) % 4


def random_fits(seed: int) -> tuple[CrossFit, np.ndarray, np.ndarray]:
    """A cross-fit whose inner predictions are not its outer ones."""
    logits, answers, folds = synthetic(seed, candidates=6, n=40)
    inner = np.random.default_rng(100 + seed).normal(size=(4, *logits.shape)) + 1.5 * np.eye(3)[answers]
    inner = np.where((folds == np.arange(4)[:, None])[:, None, :, None], np.nan, inner)
    return CrossFit(outer=logits, inner=inner), answers, folds


def local_temperature(choice: Choice, fits: CrossFit, folds: np.ndarray, f: int) -> np.ndarray:
    return np.asarray(fits.outer[choice.by_fold[f]][folds == f] / choice.honest[folds == f])


def temperature_outside(logits: np.ndarray, losses: np.ndarray, answers: np.ndarray, folds: np.ndarray) -> float:
    """What rows ask for that neither chose nor calibrated: logits (C, n, K), losses (C, n)."""
    said = np.empty(logits.shape[1:])
    for f in np.unique(folds):
        rest = folds != f
        best = int(losses[:, rest].mean(1).argmin())
        said[~rest] = logits[best, ~rest] / float(fit_temperature(logits[best, rest], answers[rest]))
    return max(1.0, float(fit_temperature(said, answers)) / LUCK)


@pytest.mark.usefixtures("one_temperature")
@pytest.mark.parametrize("seed", [0, 3])
def test_choice_equals_the_definition_written_out(seed: int) -> None:
    fits, answers, folds = random_fits(seed)
    choice = choose(fits, answers, folds)
    for c in range(6):
        t = float(fit_temperature(fits.outer[c], answers))
        assert choice.temperatures[c] == pytest.approx(t)
        assert choice.losses[c] == pytest.approx(gold_losses(fits.outer[c] / t, answers).mean())
    assert choice.chosen == min(range(6), key=lambda c: choice.losses[c])
    by_choice = np.empty_like(choice.honest)
    for f in range(4):
        seen = folds != f
        local = [float(fit_temperature(fits.inner[f, c][seen], answers[seen])) for c in range(6)]
        losses = np.stack([gold_losses(fits.inner[f, c][seen] / t, answers[seen]) for c, t in enumerate(local)])
        best = int(losses.mean(1).argmin())
        assert choice.by_fold[f] == best
        softer = temperature_outside(fits.inner[f][:, seen], losses, answers[seen], folds[seen])
        by_choice[folds == f] = fits.outer[best][folds == f] / local[best]
        np.testing.assert_allclose(choice.honest[folds == f], by_choice[folds == f] / softer, rtol=1e-4)
    softer = max(1.0, float(fit_temperature(by_choice, answers)) / LUCK)
    assert choice.calibration.kind == "temperature"
    assert choice.calibration.temperature == pytest.approx(choice.temperatures[choice.chosen] * softer, rel=1e-4)
    assert len(set(choice.by_fold)) > 1  # else nothing above was tested


@pytest.mark.usefixtures("one_temperature")  # so that what was said shows it
@pytest.mark.parametrize("f", range(4))
def test_a_fold_has_no_say_in_its_own_candidate_and_temperature(f: int) -> None:
    fits, answers, folds = random_fits(1)
    before = choose(fits, answers, folds)
    held = folds == f
    others = np.where(held, (answers + 1) % 3, answers)
    # What the fold's rows look like, and all that any model which saw them says, may change as it likes.
    outer = np.random.default_rng(f).normal(size=fits.outer.shape) * 5
    inner = fits.inner.copy()
    inner[np.arange(4) != f] *= -3.0
    after = choose(CrossFit(outer=outer, inner=inner), others, folds)
    assert after.by_fold[f] == before.by_fold[f]
    np.testing.assert_allclose(
        local_temperature(after, CrossFit(outer=outer, inner=inner), folds, f),
        local_temperature(before, fits, folds, f),
        rtol=1e-9,
    )
    assert after.by_fold != before.by_fold  # the other folds did notice


def test_the_chosen_of_many_equal_candidates_looks_too_good_and_the_honest_word_does_not(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    # The trial of vector scaling, which would take most of the time here, is guarded with the calibration.
    monkeypatch.setattr("probekd.probes.choose.calibrate", lambda z, answers, *_, **__: one_temperature(z, answers))
    big, gold, _ = synthetic(999, candidates=1, n=100_000)
    t = fit_temperature(big, gold)
    true_nll = float(gold_losses(big / t[:, None, None], gold).mean())
    true_accuracy = float((big[0].argmax(1) == gold).mean())
    found = []
    for seed in range(60):
        logits, answers, folds = synthetic(seed, candidates=30, n=48)
        choice = choose(untrained(logits, folds), answers, folds)
        found.append(
            (
                choice.losses[choice.chosen] - true_nll,
                (logits[choice.chosen].argmax(1) == answers).mean() - true_accuracy,
                gold_losses(choice.honest, answers).mean() - true_nll,
                (choice.honest.argmax(1) == answers).mean() - true_accuracy,
            )
        )
    errors = np.array(found)
    mean, standard_error = errors.mean(0), errors.std(0) / np.sqrt(len(errors))
    assert mean[0] < -0.1 and mean[1] > 0.05
    # A temperature fitted on 36 rows costs a little; that is an honest cost, and above zero.
    assert -3 * standard_error[2] < mean[2] < 0.04 + 3 * standard_error[2]
    assert abs(mean[3]) < 3 * standard_error[3]


# ---- one standard error -------------------------------------------------------------------------------------------


def losses_of(*gaps: tuple[float, float]) -> np.ndarray:
    """(C, 100) losses: the first is 1 throughout, each other exceeds it by (mean, standard deviation)."""
    noise = np.tile([-1.0, 1.0], 50)
    return np.stack([np.ones(100), *(1 + mean + spread * noise for mean, spread in gaps)])


@pytest.mark.parametrize(
    ("gaps", "stronger", "expected"),
    [
        ([(0.05, 1.0)], [[1], []], 1),  # half a standard error above: the stronger penalty
        ([(0.15, 1.0)], [[1], []], 0),  # one and a half: no
        ([(0.05, 1.0)], [[], []], 0),  # it is no kin
        ([(0.05, 1.0), (0.09, 1.0)], [[1, 2], [2], []], 2),  # the strongest within, not the next
        ([(0.15, 1.0), (0.09, 1.0)], [[1, 2], [2], []], 2),  # one in between may be outside
        ([(0.05, 1.0), (0.15, 1.0)], [[1, 2], [2], []], 1),
        ([(-0.05, 0.1), (0.0, 0.1)], [[1, 2], [2], []], 1),  # the lowest itself is weaker than another kin outside
        ([(-0.01, 1.0)], [[1], []], 1),  # kin of the best are those stronger than it: never the weaker one
        ([(0.0, 0.0)], [[1], []], 1),  # a tie goes to the stronger
        ([(0.001, 0.0)], [[1], []], 0),  # the error is of the paired difference: a sure loss is one, however small
    ],
)
def test_one_standard_error(gaps: list[tuple[float, float]], stronger: list[list[int]], expected: int) -> None:
    assert lowest(losses_of(*gaps), stronger) == expected


def test_the_error_is_of_the_paired_difference() -> None:
    shared = np.random.default_rng(0).normal(size=400) * 3
    losses = np.stack([shared, shared + 0.05])
    assert losses[1].mean() - losses[0].mean() < losses[0].std() / 20  # within the unpaired error
    assert lowest(losses, [[1], []]) == 0


@pytest.mark.parametrize("seed", range(20))
def test_the_choice_is_never_weaker_than_the_lowest(seed: int) -> None:
    draw = np.random.default_rng(seed)
    losses = draw.normal(size=(6, 50)) * 0.3 + draw.normal(size=50)
    stronger = [tuple(range(i + 1, 3 if i < 3 else 6)) for i in range(6)]  # two families of three strengths
    best, found = int(losses.mean(1).argmin()), lowest(losses, stronger)
    assert found == best or found in stronger[best]
    # And what no kin is told of cannot win: by the definition, written out.
    within = [
        o
        for o in stronger[best]
        if (d := losses[o] - losses[best]).mean() <= np.sqrt(((d - d.mean()) ** 2).mean() / 50)
    ]
    assert found == max([best, *within])


def test_choose_applies_the_rule_inside_every_fold_and_over_all() -> None:
    logits, answers, folds = synthetic(0, candidates=2, n=60)
    logits[1] = logits[0]
    fits = untrained(logits, folds)
    plain, ruled = choose(fits, answers, folds), choose(fits, answers, folds, [[1], []])
    assert (plain.chosen, ruled.chosen) == (0, 1)
    assert (set(plain.by_fold), set(ruled.by_fold)) == ({0}, {1})


# ---- a candidate that knows -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("knows", range(4))
def test_a_candidate_that_saw_the_labels_of_a_fold_does_not_win_there(knows: int) -> None:
    logits, answers, folds = synthetic(3, candidates=2, n=80)
    held = folds == knows
    fits = untrained(logits, folds)
    # Candidate 1 is noise, but all that it says of one fold's rows comes from their labels.
    outer, inner = fits.outer.copy(), fits.inner.copy()
    outer[1] = np.random.default_rng(4).normal(size=outer[1].shape)
    outer[1, held] = 30 * np.eye(3)[answers[held]]
    for f in range(4):
        inner[f, 1] = np.where((folds == f)[:, None], np.nan, outer[1])
    choice = choose(CrossFit(outer=outer, inner=inner), answers, folds)
    assert choice.by_fold[knows] == 0
    assert gold_losses(choice.honest[held], answers[held]).mean() > 0.3


def test_row_losses_of_a_fold_are_missing_there_and_calibrated_by_the_others() -> None:
    fits, answers, folds = random_fits(5)
    losses = row_losses(fits, answers, folds)
    for f in range(4):
        seen = folds != f
        assert np.isnan(losses.inner[f][:, ~seen]).all()
        for c in range(6):
            z = fits.inner[f, c][seen]
            t = float(fit_temperature(z, answers[seen]))
            np.testing.assert_allclose(
                losses.inner[f, c, seen], gold_losses(z / t, answers[seen]), rtol=1e-4, atol=1e-5
            )
    both = join([losses, losses])
    assert isinstance(both, RowLosses) and both.outer.shape == (12, 40) and both.inner.shape == (4, 12, 40)
    np.testing.assert_array_equal(both.inner[1, 7], losses.inner[1, 1])
    np.testing.assert_array_equal(both.temperatures[6:], losses.temperatures)


def test_a_fold_is_calibrated_by_the_others_inner_predictions(monkeypatch: pytest.MonkeyPatch) -> None:
    fits, answers, folds = random_fits(6)
    asked = []

    def vector(logits: np.ndarray, gold: np.ndarray, groups: np.ndarray, **_: bool) -> Calibration:
        asked.append((logits, gold, groups))
        return vector_scaling(logits, gold)

    monkeypatch.setattr("probekd.probes.choose.calibrate", vector)
    monkeypatch.setattr("probekd.probes.choose.flattery_inside", lambda say, gold, *_: 1.0 + len(gold))
    choice = choose(fits, answers, folds)
    *inside, whole = asked
    np.testing.assert_array_equal(whole[0], fits.outer[choice.chosen])
    for f, (logits, gold, groups) in enumerate(inside):
        seen, best = folds != f, choice.by_fold[f]
        np.testing.assert_array_equal(logits, fits.inner[f, best][seen])
        np.testing.assert_array_equal(gold, answers[seen])
        assert f not in groups
        expected = vector_scaling(fits.inner[f, best][seen], answers[seen]).apply(fits.outer[best][~seen])
        np.testing.assert_allclose(choice.honest[~seen], expected / (1 + seen.sum()), rtol=1e-6)


def test_the_temperature_of_one_that_was_not_chosen_is_what_the_others_rows_say_of_it() -> None:
    logits, answers, folds = synthetic(7, candidates=1, n=4000, strength=1.5)
    shares = np.zeros(logits.shape[1:])

    def say(rows: np.ndarray) -> np.ndarray:
        return np.asarray(logits[0] / float(fit_temperature(logits[0, rows], answers[rows])))

    assert flattery_inside(say, answers, folds, shares) == 1
    assert flattery_inside(lambda rows: say(rows) / 3, answers, folds, shares) == 1
    assert flattery_inside(lambda rows: 3 * say(rows), answers, folds, shares) == pytest.approx(3 / LUCK, abs=0.06)


def test_the_rows_that_choose_among_noise_learn_that_it_is_noise() -> None:
    generator = np.random.default_rng(0)
    logits, answers, folds = generator.normal(size=(60, 100, 4)), generator.integers(0, 4, 100), np.arange(100) % 5
    choice = choose(untrained(logits, folds), answers, folds)
    best = logits[choice.chosen]
    # Of rows to come every answer is as likely.
    flattered, found = (
        -log_softmax(z).mean() for z in (best / choice.temperatures[choice.chosen], choice.calibration.apply(best))
    )
    assert found < np.log(4) + 0.003 < flattered
    assert gold_losses(choice.honest, answers).mean() < np.log(4) + 0.02
