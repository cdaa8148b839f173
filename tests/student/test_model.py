from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import AutoModelForMultipleChoice, AutoModelForSequenceClassification, AutoTokenizer, pipeline

from probekd.errors import DataError, ModelError, StoreError
from probekd.student import Student
from probekd.tasks.base import Example, Task


def test_probabilities_equal_the_plain_classifier_row_by_row(kinds: Task, kinds_student: Student) -> None:
    tokenizer = AutoTokenizer.from_pretrained(kinds_student.directory)
    model = AutoModelForSequenceClassification.from_pretrained(kinds_student.directory).eval()
    assert model.config.id2label == {0: "animal", 1: "tool", 2: "food"}
    assert model.config.label2id == {"animal": 0, "tool": 1, "food": 2}
    test = kinds.rows("test")
    for example, probs in zip(test, kinds_student.predict_proba(test, batch_size=7), strict=True):
        with torch.no_grad():
            logits = model(**tokenizer(example.question, return_tensors="pt")).logits[0]
        assert probs.dtype == np.float64
        assert probs.sum() == pytest.approx(1, abs=1e-12)
        np.testing.assert_allclose(probs, torch.softmax(logits, -1).numpy(), atol=1e-5)


def test_the_pipeline_gives_label_names_and_the_same_probabilities(kinds: Task, kinds_student: Student) -> None:
    classify = pipeline("text-classification", str(kinds_student.directory), top_k=None, device="cpu")
    test = kinds.rows("test")[::5]
    for found, probs in zip(classify([e.question for e in test]), kinds_student.predict_proba(test), strict=True):
        scores = {entry["label"]: entry["score"] for entry in found}
        np.testing.assert_allclose([scores[name] for name in kinds.labels], probs, atol=1e-5)


def test_probabilities_equal_the_plain_multiple_choice_model_row_by_row(which: Task, which_student: Student) -> None:
    tokenizer = AutoTokenizer.from_pretrained(which_student.directory)
    model = AutoModelForMultipleChoice.from_pretrained(which_student.directory).eval()
    test = which.rows("test")
    for example, probs in zip(test, which_student.predict_proba(test, batch_size=5), strict=True):
        pairs = tokenizer([example.question] * len(example.options), example.options, padding=True, return_tensors="pt")
        with torch.no_grad():
            logits = model(**{name: tensor[None] for name, tensor in pairs.items()}).logits[0]
        np.testing.assert_allclose(probs, torch.softmax(logits, -1).numpy(), atol=1e-5)


def test_the_code_of_the_model_card_runs(
    which: Task, which_student: Student, capsys: pytest.CaptureFixture[str]
) -> None:
    card = (which_student.directory / "README.md").read_text()
    code = card.split("```python")[1].split("```")[0].replace("path/to/this/directory", str(which_student.directory))
    code = code.replace('"some question", ["one option", "another option"]', '"which is a tool ?", ["saw", "cow"]')
    exec(compile(code, "README.md", "exec"), {})
    row = Example(id="r", question="which is a tool ?", options=("saw", "cow"))
    (probs,) = which_student.predict_proba([row])
    assert capsys.readouterr().out.strip() == row.options[probs.argmax()]


def test_prediction_repeats_and_does_not_read_answers(which: Task, which_student: Student) -> None:
    test = which.rows("test")
    blind = [Example(id=e.id, question=e.question, options=e.options) for e in test]
    first, second = which_student.predict_proba(test), which_student.predict_proba(blind)
    assert all((a == b).all() for a, b in zip(first, second, strict=True))
    assert which_student.predict_proba([]) == []


def test_load_gives_what_was_saved(kinds: Task, kinds_student: Student) -> None:
    again = Student.load(str(kinds_student.directory))
    assert again.info == kinds_student.info
    assert (again.kind, again.labels) == ("classification", kinds.labels)
    test = kinds.rows("test")
    pairs = zip(again.predict_proba(test), kinds_student.predict_proba(test), strict=True)
    assert all((a == b).all() for a, b in pairs)


def test_cutting_follows_the_recorded_length(kinds: Task, kinds_student: Student, tmp_path: Path) -> None:
    directory = tmp_path / "student"
    shutil.copytree(kinds_student.directory, directory)
    record = json.loads((directory / "probekd.json").read_text())
    (directory / "probekd.json").write_text(json.dumps({**record, "max_length": 4}))
    rows = [Example(id=t, question=t, options=kinds.labels) for t in ("the dog", "the dog saw bread seen here")]
    cut, whole = Student.load(directory).predict_proba(rows)
    np.testing.assert_allclose(cut, whole, atol=1e-6)


def test_a_directory_that_is_no_student_is_refused(tiny_bert: Path, tmp_path: Path) -> None:
    for directory in (tiny_bert, tmp_path, tmp_path / "absent"):
        with pytest.raises(ModelError, match=r"not a student, it has no probekd\.json"):
            Student.load(directory)


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        (lambda record: "{", StoreError, "is damaged"),
        (lambda record: json.dumps([record]), StoreError, "format version None"),
        (lambda record: json.dumps({**record, "format_version": 99}), StoreError, "format version 99"),
        (lambda record: json.dumps({k: v for k, v in record.items() if k != "kind"}), StoreError, "damaged.*'kind'"),
        (lambda record: json.dumps({**record, "colour": "red"}), StoreError, "damaged.*'colour'"),
    ],
)
def test_a_damaged_record_is_refused(
    kinds_student: Student, tmp_path: Path, change: object, error: type[Exception], message: str
) -> None:
    record = json.loads((kinds_student.directory / "probekd.json").read_text())
    (tmp_path / "probekd.json").write_text(change(record))  # type: ignore[operator]
    with pytest.raises(error, match=message):
        Student.load(tmp_path)


def test_damaged_weights_are_refused(kinds_student: Student, tmp_path: Path) -> None:
    directory = tmp_path / "student"
    shutil.copytree(kinds_student.directory, directory)
    (directory / "model.safetensors").write_bytes((directory / "model.safetensors").read_bytes()[:1000])
    with pytest.raises(ModelError, match="cannot be loaded"):
        Student.load(directory)


def test_an_option_longer_than_the_model_is_named(which_student: Student) -> None:
    row = Example(id="q7", question="which ?", options=("saw " * 80, "cow"))
    with pytest.raises(DataError, match="row 'q7'"):
        which_student.predict_proba([row])
