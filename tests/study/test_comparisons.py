from __future__ import annotations

from operator import attrgetter

import numpy as np
import pytest
from made_up_study import SKILL, made_up
from scipy.stats import ttest_rel

from probekd.study.comparisons import behind, compare_panel, panels, standing
from probekd.study.results import read_results, write_results
from probekd.study.summary import summarise
from probekd.study.verdicts import judge_verdicts


def test_methods_without_a_pool_stand_in_the_panels_of_every_pool() -> None:
    found = panels(made_up(tasks=("t",), budgets=(100,)))
    assert [p.pool for p in found] == ["0", "all"]
    assert {"labels", "label-smoothing"} <= set(found[0].methods) & set(found[1].methods)
    assert "self-train" not in found[0].methods and "self-train" in found[1].methods
    assert found[1].cells["labels", 1] is found[0].cells["labels", 1]
    assert found[1].seeds("labels", "probe-kd") == [0, 1, 2]


def test_without_a_cell_of_no_pool_there_is_no_panel_of_it() -> None:
    """``labels`` learns from no pool, but alone it is nobody's rival, and what the gate says of it would hold by itself."""
    found = panels(made_up(tasks=("t",), budgets=(100,), pools=("1000",), verdict="labels"))
    assert [p.pool for p in found] == ["1000"]
    judged = judge_verdicts(found, "nll", ("labels", "calibrated-logit-kd", "probe-kd"))
    assert len(judged) == 3 and not any(j.held for j in judged)


def test_shares_are_of_seeds_under_which_all_methods_were_trained() -> None:
    results = made_up(tasks=("t",), budgets=(100,), verdict="labels")
    results = [r for r in results if (r.method, r.seed) != ("probe-kd", 2)]
    groups = panels(results)
    assert all(p.complete == [0, 1] for p in groups)
    assert standing(groups, "labels", "nll", ("labels", "blend-kd")).cells == 2 * 2
    assert {j.seed for j in judge_verdicts(groups, "nll", ("labels",))} == {0, 1}


def test_differences_are_ours_minus_theirs_on_the_same_rows_and_seeds() -> None:
    panel = panels(made_up(tasks=("t",), budgets=(100,), seeds=range(5), rows=400))[1]
    found = {(c.a, c.b, c.metric): c for c in compare_panel(panel, resamples=300)}
    for metric, sign in (("accuracy", 1), ("nll", -1), ("ece", 1)):
        by_hand = np.mean(
            [panel.cells["probe-kd", s].scores[metric] - panel.cells["labels", s].scores[metric] for s in range(5)]
        )
        c = found["probe-kd", "labels", metric]
        assert c.difference == pytest.approx(by_hand, abs=2e-3)
        assert c.ci[0] < c.difference < c.ci[1]
        if metric != "ece":
            assert sign * c.difference > 0.05 and c.p_holm < 0.05
    ece = [[panel.cells[m, s].scores["ece"] for s in range(5)] for m in ("probe-kd", "labels")]
    assert found["probe-kd", "labels", "ece"].p_value == pytest.approx(ttest_rel(*ece).pvalue, rel=0.2)
    assert found["probe-kd", "blend-kd", "nll"].p_holm > 0.05
    # Adjusted for the ten rivals that probe-kd has here.
    rivals = [c for (a, _, metric), c in found.items() if (a, metric) == ("probe-kd", "nll")]
    assert len(rivals) == 10 and all(c.p_holm >= c.p_value for c in rivals)
    assert min(c.p_holm for c in rivals) == pytest.approx(10 * min(c.p_value for c in rivals))


def test_of_a_single_seed_no_calibration_errors_are_compared() -> None:
    """One number each: nothing says how sure their difference is."""
    panel = panels(made_up(rows=50, seeds=(0,)))[0]
    assert {c.metric for c in compare_panel(panel, resamples=50)} == {"accuracy", "nll"}


def test_level_and_ahead_are_counted_cell_by_cell() -> None:
    groups = panels(made_up(rows=300))
    among = ("labels", "probe-kd", "blend-kd", "self-train", "calibrated-logit-kd")
    found = standing(groups, "blend-kd", "nll", among)
    level = ahead = 0
    for panel in groups:
        for seed in (0, 1, 2):
            mine = panel.cells["blend-kd", seed]
            rivals = [panel.cells[m, seed] for m in among if m != "blend-kd" and (m, seed) in panel.cells]
            best = min(rivals, key=lambda r: r.scores["nll"])
            losses = [r.outcomes.losses.astype(float) for r in (mine, best)]
            d = losses[0] - losses[1]
            level += d.mean() <= d.std() / len(d) ** 0.5
            ahead += d.mean() < 0
    assert (found.cells, found.level, found.ahead) == (24, level, ahead)
    assert standing(groups, "labels", "nll", among).level == 0
    assert behind(groups[0].cells["labels", 0], groups[0].cells["probe-kd", 0], "accuracy")[0] > 0


def test_a_verdict_holds_where_its_method_wins_or_nearly() -> None:
    methods = ("labels", "calibrated-logit-kd", "probe-kd", "blend-kd")
    for verdict, share in (("probe-kd", 1.0), ("labels", 0.0), ("logit-kd", 0.0)):
        groups = panels(made_up(methods=methods, verdict=verdict, rows=400))
        judged = judge_verdicts(groups, "nll", ("labels", "calibrated-logit-kd", "probe-kd"))
        assert len(judged) == 2 * 2 * 2 * 3
        assert np.mean([j.held for j in judged]) == share
        assert {j.winner for j in judged} == {"probe-kd"}
    # With a method among the rivals that is far better than what the gate can name, it holds nowhere.
    groups = panels(made_up(methods=methods, skill={**SKILL, "blend-kd": 2.5}, rows=400))
    assert not any(j.held for j in judge_verdicts(groups, "nll", methods))


def test_who_led_out_of_fold_is_judged_too_sure_or_not() -> None:
    for lead, share in ((-0.1, 1.0), (0.1, 0.0)):
        groups = panels(made_up(methods=("labels", "probe-kd"), verdict="labels", lead=lead, rows=400))
        judged = judge_verdicts(groups, "nll", ("labels", "probe-kd"), attrgetter("leader"))
        assert {j.verdict for j in judged} == {"probe-kd" if lead < 0 else "labels"}
        assert np.mean([j.held for j in judged]) == share
        assert not any(j.held for j in judge_verdicts(groups, "nll", ("labels", "probe-kd")))


def test_the_summary_counts_the_gates_word_and_who_led_apart() -> None:
    results = made_up(methods=("labels", "probe-kd"), verdict="labels", lead=-0.1, rows=400)
    shares = [s for s in summarise(results, refused={}, resamples=50).shares if s.budget is None and s.metric == "nll"]
    held = {s.what.partition(" the best")[0]: s.held for s in shares if " the best of" in s.what}
    assert held == {"the gate named": 0, "who led out of fold, surely or not, was": 2 * 2 * 2 * 3}


def test_the_summary_has_a_mean_for_every_method_and_panel(tmp_path_factory: pytest.TempPathFactory) -> None:
    results = made_up()
    summary = summarise(results, refused={"t-100-0": "too few"}, resamples=100)
    assert len(summary.means) == 2 * 2 * (2 + (2 + 8) + (2 + 9))
    one = next(m for m in summary.means if (m.method, m.pool, m.task, m.budget) == ("probe-kd", "all", "kinds", 300))
    each = [
        r.scores["accuracy"]
        for r in results
        if (r.method, r.pool, r.task, r.budget) == ("probe-kd", "all", "kinds", 300)
    ]
    assert one.scores["accuracy"] == (pytest.approx(np.mean(each)), min(each), max(each)) and one.seeds == 3
    assert one.costs["seconds"] == 1.5 and one.target_accuracy == 0.6
    shares = {(s.what, s.metric, s.budget): s for s in summary.shares}
    whole = shares["blend-kd is ahead of every other method", "nll", None]
    parts = [shares["blend-kd is ahead of every other method", "nll", b] for b in (100, 300)]
    assert whole.held == sum(p.held for p in parts) and whole.cells == sum(p.cells for p in parts) == 24
    choices = {(c.method, c.pool): c for c in summary.choices}
    assert choices["probe-kd", "0"].chosen == {
        "alpha": {"0.5": 4, "1": 8},
        "temperature": {"2": 12},
        "l2": {"0.003": 4, "0.006": 4, "0.009": 4},
    }
    assert set(choices["labels", "0"].chosen) == set(choices["hidden-kd", "all"].chosen) == {"l2"}
    alone = {place for place, c in choices.items() if c.as_labels}
    assert ("probe-kd", "0") in alone and not {("labels", "0"), ("hidden-kd", "0"), ("probe-kd", "all")} & alone
    path = tmp_path_factory.mktemp("results") / "results.parquet"
    write_results(path, results)
    again = summarise(read_results(path), refused={"t-100-0": "too few"}, resamples=100)
    assert again.as_dict() == summary.as_dict()
