from __future__ import annotations

from pathlib import Path

import pytest
from made_up_study import SKILL, made_up
from pages import CHROMIUM, Page, hidden_sideways, phone_width

from probekd.config import TeacherConfig
from probekd.methods import RECIPES
from probekd.study.config import StudyConfig
from probekd.study.markdown import markdown
from probekd.study.page import costs, differences, record_against, render
from probekd.study.results import Result
from probekd.study.summary import Summary, summarise


@pytest.fixture(scope="module")
def study() -> StudyConfig:
    return StudyConfig(
        name="made <b>up</b>",
        tasks=("arc_easy", "kinds"),  # type: ignore[arg-type]
        teachers=("models/teacher",),  # type: ignore[arg-type]
        students=({"model": "models/small", "kind": "static"},),  # type: ignore[arg-type]
        methods=tuple(RECIPES),
        budgets=(100, 300),
    )


@pytest.fixture(scope="module")
def summary() -> Summary:
    return summarise(made_up(), refused={"kinds-10-0": "too <few>"}, resamples=100)


def test_the_page_is_whole_and_asks_nothing_of_the_network(study: StudyConfig, summary: Summary) -> None:
    text = render(study, summary)
    page = Page(text)
    shown = page.all_text()
    for method in RECIPES:
        assert method in shown
    for heading in (
        "Accuracy against labels",
        "Paired differences",
        "The gate",
        "What the search chose",
        "What it cost",
        "Every figure",
    ):
        assert heading in shown
    assert "0.5 (4), 1 (8)" in shown and "probe-kd in 8 of 12 cells without a pool" in shown
    assert "made <b>up</b>" in shown and "too <few>" in shown  # as text, not as markup
    assert not {"script", "img", "link"} & {tag for tag, attrs in page.tags if attrs.get("rel") != "icon"}
    assert "http" not in text.replace("http-equiv", "")
    assert text == render(study, summary)
    # A panel a task with and without the pool, five lines each but for self-train, which needs a pool.
    assert text.count('class="plot axes"') == 4
    assert text.count('class="band ') == 2 * 5 + 2 * 4


def test_the_table_at_the_top_counts_sure_differences(summary: Summary) -> None:
    found = {one["rival"]: one for one in record_against(summary)}
    for rival, one in found.items():
        some = [c for c in summary.comparisons if (c.a, c.b, c.metric) == ("probe-kd", rival, "nll")]
        assert one["better"] == sum(c.p_holm < 0.05 and c.difference < 0 for c in some)
        assert one["better"] + one["worse"] + one["neither"] == len(some)
    assert found["labels"]["better"] > 0


def test_one_budget_and_one_seed_are_enough(study: StudyConfig) -> None:
    few = made_up(tasks=("kinds",), budgets=(100,), seeds=(0,), methods=("labels", "probe-kd"), pools=("all",))
    summary = summarise(few, refused={}, resamples=100)
    assert 'class="band ' in render(study.model_copy(update={"methods": ("labels", "probe-kd")}), summary)
    text = markdown(summary)
    assert "| small static | probe-kd | all |" in text
    assert "| kinds | teacher | small static | 100 | all | probe-kd minus labels | accuracy |" in text
    assert "| small static | probe-kd | all | 1 | 0.5 (1) | 2 (1) | 0.003 (1) |" in text and "exactly 0" not in text


def test_each_teacher_has_its_own_figures(study: StudyConfig) -> None:
    one = made_up(tasks=("kinds",), methods=("labels", "probe-kd"), seeds=(0, 1))
    two = [
        Result.of({**r.record, "settings": {**r.record["settings"], "teacher": "other"}, "teacher_tokens": 7000})
        for r in made_up(
            tasks=("kinds",), methods=("labels", "probe-kd"), seeds=(0, 1), skill={**SKILL, "probe-kd": 0.0}
        )
    ]
    summary = summarise([*one, *two], refused={}, resamples=100)
    tables = {
        (d["teacher"], d["metric"], d["pool"]): d for d in differences(summary.comparisons) if d["ours"] == "probe-kd"
    }
    assert {t for t, *_ in tables} == {"teacher", "other"}
    for teacher in ("teacher", "other"):
        shown = tables[teacher, "accuracy", "all"]["rows"]["kinds", 300]["labels"]
        (expected,) = [
            c
            for c in summary.comparisons
            if (c.teacher, c.metric, c.pool, c.budget, c.a, c.b)
            == (teacher, "accuracy", "all", 300, "probe-kd", "labels")
        ]
        assert shown == expected
    teachers = tuple(TeacherConfig(model=name) for name in ("teacher", "other"))
    text = render(study.model_copy(update={"teachers": teachers}), summary)
    assert ", read by teacher" in text and ", read by other" in text
    assert "| kinds | other | small static |" in markdown(summary)
    found = {(c["teacher"], c["method"], c["pool"]): c["teacher_tokens"] for c in costs(summary.means)}
    assert {v for (t, *_), v in found.items() if t == "teacher"} == {1000}
    assert {v for (t, *_), v in found.items() if t == "other"} == {7000}
    assert ">other</td>" in text.partition('id="costs"')[2]


def test_the_largest_pool_is_shown_first_by_its_size() -> None:
    summary = summarise(made_up(tasks=("kinds",), pools=("50", "100"), seeds=(0, 1)), refused={}, resamples=50)
    assert {d["pool"] for d in differences(summary.comparisons) if d["first"]} == {"100"}


def test_a_difference_of_exactly_0_is_explained_where_it_stands(summary: Summary) -> None:
    text = markdown(summary)
    after = text[text.index("## Paired differences") : text.index("## What the search chose")]
    assert "A difference of exactly 0 is no mistake" in after and "blend-kd in 8 of 12 cells without a pool" in after


@pytest.mark.slow
@pytest.mark.skipif(CHROMIUM is None, reason="chromium is not installed")
def test_a_phone_never_scrolls_sideways(study: StudyConfig, summary: Summary, tmp_path: Path) -> None:
    assert phone_width(tmp_path / "profile", render(study, summary)) == "390 of 390"


@pytest.mark.slow
@pytest.mark.skipif(CHROMIUM is None, reason="chromium is not installed")
@pytest.mark.parametrize("label", ["How often", "Costs by method"])
def test_a_desk_shows_the_figures_beside_their_statements(
    study: StudyConfig, summary: Summary, tmp_path: Path, label: str
) -> None:
    assert hidden_sideways(tmp_path / "profile", render(study, summary), label) == 0
