"""The model card: valid for the Hub, true to the figures, and proof against what data may hold."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from huggingface_hub import ModelCard
from markdown_it import MarkdownIt

from probekd.config import TeacherConfig
from probekd.methods import RECIPES
from probekd.metrics import Scores
from probekd.student import Student
from probekd.student.calibration import StudentCalibration
from probekd.student.card import Results, complete_cards, escaped, model_card
from probekd.student.licence import Origin, front_matter, licence_of

NASTY = 'a | b\n# c `d` <script>alert(1)</script> [e](http://f) *g* &amp; $h$ "q": {y}'


def scores(accuracy: float) -> Scores:
    return Scores(
        accuracy=accuracy,
        accuracy_ci=[accuracy - 0.1, accuracy + 0.1],
        nll=0.5,
        brier=0.3,
        ece=0.04,
        macro_f1=0.7,
        n=90,
    )


RESULTS = Results(
    who="student",
    method="probe-kd",
    teacher=Origin(name="org/big", licence="llama3"),
    scores={
        "test": {
            "teacher_output": scores(0.61),
            "probe": scores(0.82),
            "student": scores(0.76),
            "student:labels": scores(0.7),
        }
    },
)


def test_front_matter_is_read_by_the_hub_with_the_results(kinds_student: Student) -> None:
    info = replace(kinds_student.info, method="probe-kd", base_model="org/small", base_licence="apache-2.0")
    card = ModelCard(model_card(info, kinds_student.model, RESULTS))
    assert (card.data.license, card.data.base_model, card.data.pipeline_tag) == (
        "apache-2.0",
        "org/small",
        "text-classification",
    )
    found = {r.metric_type: (r.metric_value, r.dataset_name, r.dataset_split) for r in card.data.eval_results}
    assert found["accuracy"] == (0.76, "kinds", "test") and found["ece"][0] == 0.04


@pytest.mark.parametrize(
    ("licence", "expected"),
    [
        ("other llama3", {"license": "other", "license_name": "llama3"}),
        ("mit", {"license": "mit"}),
        ("other", {"license": "other"}),
    ],
)
def test_a_licence_of_its_own_has_its_name(kinds_student: Student, licence: str, expected: dict[str, str]) -> None:
    info = replace(kinds_student.info, base_licence=licence)
    found = front_matter(model_card(info, kinds_student.model, RESULTS))
    assert {k: v for k, v in found.items() if k.startswith("license")} == expected


@pytest.mark.parametrize("rows", ["validation", "held out"])
def test_rows_that_chose_epochs_are_not_called_untouched(kinds_student: Student, rows: str) -> None:
    calibration = StudentCalibration(
        temperature=1.2, rows=rows, n=9, nll_before=1, nll_after=0.9, ece_before=0.1, ece_after=0.05
    )
    info = replace(kinds_student.info, calibration=calibration)
    both = replace(RESULTS, scores={"validation": RESULTS.scores["test"], **RESULTS.scores})
    text = model_card(info, kinds_student.model, both)
    assert "test, 90 rows, none of which it was trained on:" in text
    told = "though the number of its epochs and its temperature were chosen on them"
    assert (f"validation, 90 rows, none of which it was trained on, {told}:" in text) is (rows == "validation")


def test_figures_are_those_of_the_run(kinds_student: Student) -> None:
    info = replace(kinds_student.info, method="probe-kd")
    text = model_card(info, kinds_student.model, RESULTS)
    assert "| **this student** | 0.760 | 0.660 to 0.860 | 0.500 | 0.040 |" in text
    assert "| the probe on its hidden states | 0.820 |" in text
    assert "| a student trained by labels | 0.700 |" in text
    assert "Its teacher was org/big." in text and "- teacher, org/big: llama3" in text
    assert f"on {info.num_labels_used} labelled" in text
    baseline = model_card(replace(info, method="labels"), kinds_student.model, replace(RESULTS, who="student:labels"))
    assert "It learned from the labels alone." in baseline and "org/big" not in baseline
    assert "| a student trained by probe-kd | 0.760 |" in baseline


@pytest.mark.parametrize("method", RECIPES)
def test_a_teacher_and_its_licence_are_named_where_it_took_part(kinds_student: Student, method: str) -> None:
    info = replace(kinds_student.info, method=method, num_pool_rows=48 if method == "self-train" else 0)
    card = ModelCard(model_card(info, kinds_student.model, RESULTS))
    taught = method not in ("labels", "label-smoothing", "self-train")
    for sign in ("org/big", "llama3", "What its teacher gets wrong", "may say what models that learn from it"):
        assert (sign in card.text) == taught, sign
    assert ("knowledge-distillation" in card.data.tags) == taught
    assert ("what a student of the labels said of the rest" in card.text) == (method == "self-train")
    assert ("It learned from the labels alone." in card.text) == (method in ("labels", "label-smoothing"))


def test_a_method_of_someones_own_is_taken_to_have_a_teacher(kinds_student: Student) -> None:
    assert "Its teacher was org/big." in model_card(
        replace(kinds_student.info, method="mine"), kinds_student.model, RESULTS
    )


def test_a_card_without_results_says_so(kinds_student: Student) -> None:
    text = (kinds_student.directory / "README.md").read_text()
    assert "It has not been evaluated yet." in text
    assert ModelCard(text).data.eval_results is None


def test_nothing_from_data_becomes_markup(kinds_student: Student) -> None:
    info = replace(kinds_student.info, method="probe-kd", task=NASTY, base_model=NASTY, base_licence=NASTY)
    results = replace(RESULTS, teacher=Origin(name=NASTY, licence=NASTY), scores={NASTY: RESULTS.scores["test"]})
    text = model_card(info, kinds_student.model, results)
    # The front matter has its names between quotes, and the text shows each as it is.
    assert ModelCard(text).data.eval_results[0].dataset_name == NASTY
    body = text.split("\n---\n", 1)[1]
    tokens = MarkdownIt().enable("table").parse(body)
    shown = " ".join(NASTY.split())
    plain = [t.content for block in tokens if block.type == "inline" for t in block.children or [] if t.type == "text"]
    assert len([t for t in tokens if t.type == "heading_open"]) == 5
    assert not [t for block in tokens for t in (block.children or []) if t.type in ("link_open", "html_inline")]
    assert sum(shown in line for line in plain) >= 5
    assert "".join(plain).count("<script>") == "".join(plain).count(shown)


def test_escaping_shows_text_as_it_is() -> None:
    for text in (NASTY, "minilm-l6", "Mercury_SC_400375", "1. x", "50%~"):
        (block,) = [t for t in MarkdownIt().parse(f"so: {escaped(text)}") if t.type == "inline"]
        assert "".join(t.content for t in block.children or []) == "so: " + " ".join(text.split())
        assert {t.type for t in block.children or []} <= {"text", "text_special"}


def test_cards_are_completed_in_place(kinds_student: Student, tmp_path: Path) -> None:
    (tmp_path / "big").mkdir()
    (tmp_path / "big" / "README.md").write_text("---\nlicense: other\nlicense_name: my-licence\n---\n")
    run = tmp_path / "run"
    shutil.copytree(kinds_student.directory, run / "student")
    shutil.copytree(kinds_student.directory, run / "baselines" / "labels" / "student")
    replace(kinds_student.info, method="logit-kd").save(run / "student")
    (run / "metrics.json").write_text(json.dumps({**RESULTS.scores, "comparisons": [], "gate": {}}))
    complete_cards(run, TeacherConfig(model=str(tmp_path / "big")))
    text = (run / "student" / "README.md").read_text()
    assert "- teacher, big: other my-licence" in text and str(tmp_path) not in text
    assert kinds_student.model.usage in text
    baseline = (run / "baselines" / "labels" / "student" / "README.md").read_text()
    assert "| **this student** | 0.700 |" in baseline and "It learned from the labels alone." in baseline


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("---\nlicense: mit\n---\n# A\n", {"license": "mit"}),
        ("# no front matter\n---\nlicense: mit\n---\n", {}),
        ("---\n- a list\n---\n", {}),
        ("---\nlicense: [unclosed\n---\n", {}),
        ("---\nlicense: mit\n", {}),
        ("", {}),
    ],
)
def test_front_matter_is_a_mapping_or_nothing(text: str, found: dict[str, Any]) -> None:
    assert front_matter(text) == found


def test_a_licence_is_known_where_a_card_says_so(tmp_path: Path) -> None:
    assert licence_of(tmp_path) is None
    (tmp_path / "README.md").write_text("---\nlicense: [a, b]\n---\n")
    assert licence_of(tmp_path) is None
    (tmp_path / "README.md").write_bytes(b"\xff\xfe")
    assert licence_of(tmp_path) is None
    (tmp_path / "README.md").write_text("---\nlicense: apache-2.0\n---\n")
    assert Origin.of(tmp_path) == Origin(name=tmp_path.name, licence="apache-2.0")
    assert Origin.of("org/unheard-of") == Origin(name="org/unheard-of")
    assert Origin.of("not a name, is it?/") == Origin(name="not a name, is it?/")


def test_the_base_models_licence_is_recorded(kinds_student: Student) -> None:
    assert json.loads((kinds_student.directory / "probekd.json").read_text())["base_licence"] is None
