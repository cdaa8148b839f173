from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from pages import CHROMIUM, Page, browse, phone_width

from probekd.errors import StoreError
from probekd.report import page, write_report

NewRun = Callable[..., Any]
READ_FILES = (
    "config.yaml",
    "run.json",
    "probes/probe.json",
    "probes/depths.csv",
    "targets.parquet",
    "predictions.parquet",
    "metrics.json",
)
SECTIONS = (
    "Worth it here",
    "What to do.",
    "Test",
    "Validation",
    "Paired differences",
    "Where the answer is",
    "Can the confidence be believed?",
    "What is taken for what",
    "Where the two part ways",
    "What it cost",
    "To run it again",
)


def report(run: Any) -> str:
    return write_report(run.directory, run.examples).read_text(encoding="utf-8")


@pytest.mark.parametrize("kind", ["classification", "multiple_choice"])
def test_hostile_texts_are_shown_and_never_run(new_run: NewRun, kind: str) -> None:
    text = report(new_run(kind))
    parsed = Page(text)
    tags = {tag for tag, _ in parsed.tags}
    assert not tags & {"script", "img", "iframe", "object", "b", "i"}
    assert [tag for tag, _ in parsed.tags].count("style") == 1
    assert not [name for _, attributes in parsed.tags for name in attributes if name.startswith("on")]
    shown = parsed.all_text()
    for hostile in (
        "<script>document.title='pwned'</script>",
        '"><img src=x onerror=',
        "{{ 7*7 }} {% raw %} {# gone #}",
        "<i>3</i> prompts",
        "🦊",
    ):
        assert hostile in shown
    assert "</title></style><style>body{display:none}</style>" in shown


@pytest.mark.parametrize("kind", ["classification", "multiple_choice"])
def test_nothing_is_fetched(new_run: NewRun, kind: str) -> None:
    text = report(new_run(kind))
    for tag, attributes in Page(text).tags:
        assert not set(attributes) & {"src", "srcset", "action", "data", "poster", "background"}, tag
        assert (attributes.get("href") or "#").startswith("#") or (tag, attributes["href"]) == ("link", "data:,")
    assert not re.search(r"https?://|@import|url\(", text)
    assert "default-src 'none'" in text


def test_marks_refer_to_definitions_and_ids_are_unique(new_run: NewRun) -> None:
    tags = Page(report(new_run("multiple_choice"))).tags
    ids = [attributes["id"] for _, attributes in tags if "id" in attributes]
    assert len(ids) == len(set(ids))
    used = {attributes["href"] for tag, attributes in tags if tag == "use"}
    used |= {f"#{attributes['aria-labelledby']}" for _, attributes in tags if "aria-labelledby" in attributes}
    assert used <= {f"#{one}" for one in ids}


def test_the_verdict_comes_first_and_the_test_split_before_validation(new_run: NewRun) -> None:
    text = Page(report(new_run())).all_text()
    places = [text.index(words) for words in SECTIONS]
    assert places == sorted(places)
    assert (
        "0.610 nats lower log-loss (95% interval \N{MINUS SIGN}0.720 to \N{MINUS SIGN}0.500)" in text
        and "300 labelled rows" in text
    )


def test_a_contradiction_by_the_students_is_said_plainly(new_run: NewRun) -> None:
    run = new_run()

    def worse(metrics: Any) -> None:
        for one in metrics["comparisons"]:
            if one["b"] == "student:labels" and one["metric"] == "accuracy":
                one.update(difference=-0.05, ci=[-0.08, -0.02])

    run.edit("metrics.json", worse)
    text = Page(report(run)).all_text()
    assert (
        text.index("the trained students say otherwise")
        < text.index("The students contradict the gate")
        < text.index("Results")
    )


def test_the_same_files_give_the_same_bytes(new_run: NewRun) -> None:
    run = new_run("multiple_choice", 80)
    first = report(run)
    shuffled = dict(sorted(run.examples.items(), reverse=True))
    assert write_report(run.directory, shuffled).read_text(encoding="utf-8") == first
    assert sorted(p.name for p in run.directory.iterdir() if p.name.startswith((".", "report"))) == ["report.html"]


@pytest.mark.parametrize("kind", ["classification", "multiple_choice"])
def test_three_thousand_rows_stay_under_two_megabytes(new_run: NewRun, kind: str) -> None:
    run = new_run(kind, 3000)
    assert write_report(run.directory, run.examples).stat().st_size < 2_000_000


@pytest.mark.parametrize("name", READ_FILES)
def test_a_missing_file_is_named(new_run: NewRun, name: str) -> None:
    run = new_run(n=40)
    (run.directory / name).unlink()
    with pytest.raises(StoreError, match=re.escape(str(run.directory / name))):
        write_report(run.directory, run.examples)
    assert not (run.directory / "report.html").exists()


@pytest.mark.parametrize(
    "name", ["run.json", "probes/probe.json", "targets.parquet", "predictions.parquet", "metrics.json"]
)
def test_a_damaged_file_is_named(new_run: NewRun, name: str) -> None:
    run = new_run(n=40)
    path = run.directory / name
    path.write_bytes(path.read_bytes()[:-20])
    with pytest.raises(StoreError, match=re.escape(str(path))):
        write_report(run.directory, run.examples)


def test_a_missing_field_is_named(new_run: NewRun) -> None:
    run = new_run(n=40)
    run.edit("metrics.json", lambda metrics: metrics["test"]["probe"].pop("brier"))
    with pytest.raises(StoreError, match=r"metrics\.json: test\.probe\.brier"):
        write_report(run.directory, run.examples)


@pytest.mark.parametrize("kind", ["classification", "multiple_choice"])
def test_controls_baselines_and_validation_may_be_absent(new_run: NewRun, kind: str) -> None:
    run = new_run(kind, 60)

    def bare(metrics: Any) -> None:
        del metrics["validation"]
        metrics["test"] = {who: s for who, s in metrics["test"].items() if ":" not in who}
        metrics["comparisons"] = [
            c for c in metrics["comparisons"] if c["split"] == "test" and ":" not in c["a"] + c["b"]
        ]

    run.edit("metrics.json", bare)
    run.edit("probes/probe.json", lambda probe: probe.pop("controls"))
    text = Page(report(run)).all_text()
    assert "Control:" not in text and "labels alone" not in text and "Validation" not in text
    assert "Probe on the teacher's hidden states" in text


def test_validation_is_the_main_split_where_there_is_no_test(new_run: NewRun) -> None:
    run = new_run(n=80)
    run.edit("metrics.json", lambda metrics: metrics.pop("test"))
    text = Page(report(run)).all_text()
    assert "20 rows of validation" in text and "Rows of validation on which exactly one" in text


def test_more_than_twenty_classes_give_pairs_instead_of_a_matrix(
    new_run: NewRun, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = new_run(n=60)
    assert 'class="matrix' in report(run)
    monkeypatch.setattr(page.breakdown, "MATRIX_CLASSES", 9)
    text = report(run)
    assert 'class="matrix' not in text and "commonest mistakes among 10 classes" in text


@pytest.mark.slow
@pytest.mark.skipif(CHROMIUM is None, reason="chromium is not installed")
@pytest.mark.parametrize("kind", ["classification", "multiple_choice"])
def test_a_browser_shows_hostile_texts_and_runs_none(new_run: NewRun, tmp_path: Path, kind: str) -> None:
    run = new_run(kind, 100)
    dom = browse(tmp_path / "profile", write_report(run.directory, run.examples))
    parsed = Page(dom)
    assert next(text for tag, text in parsed.texts if tag == "title") == f"{kind}-demo · probekd report"
    assert "<script>document.title='pwned'</script>" in parsed.all_text()
    assert not {"script", "img"} & {tag for tag, _ in parsed.tags}


@pytest.mark.slow
@pytest.mark.skipif(CHROMIUM is None, reason="chromium is not installed")
@pytest.mark.parametrize("kind", ["classification", "multiple_choice"])
def test_a_phone_never_scrolls_sideways(new_run: NewRun, tmp_path: Path, kind: str) -> None:
    run = new_run(kind, 100)
    write_report(run.directory, run.examples)
    page = (run.directory / "report.html").read_text(encoding="utf-8")
    assert phone_width(tmp_path / "profile", page) == "390 of 390"
