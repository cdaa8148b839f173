from __future__ import annotations

import csv
import datetime
import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from probekd.errors import DataError, ModelError
from probekd.student import Student, predict_file
from probekd.tasks.base import Example, Task

FORMATS = ("csv", "jsonl", "parquet")
NEW = ["prediction", "prediction_index", "confidence", "probs"]


def write(path: Path, rows: list[dict[str, Any]]) -> Path:
    if path.suffix == ".parquet":
        pq.write_table(pa.Table.from_pylist(rows), path)
    elif path.suffix == ".jsonl":
        path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    else:
        with path.open("w", newline="", encoding="utf-8") as file:
            writer = csv.DictWriter(file, list(rows[0]))
            writer.writeheader()
            writer.writerows({k: json.dumps(v) if isinstance(v, list) else v for k, v in row.items()} for row in rows)
    return path


def read(path: Path) -> list[dict[str, Any]]:
    if path.suffix == ".parquet":
        rows: list[dict[str, Any]] = pq.read_table(path).to_pylist()
        return rows
    if path.suffix == ".jsonl":
        return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    with path.open(newline="", encoding="utf-8") as file:
        return [
            {**row, "probs": json.loads(row["probs"]), "confidence": float(row["confidence"]),
             "prediction_index": int(row["prediction_index"])}
            for row in csv.DictReader(file)
        ]  # fmt: skip


@pytest.mark.parametrize("source", FORMATS)
@pytest.mark.parametrize("target", FORMATS)
def test_classification_from_any_format_to_any(
    kinds: Task, kinds_student: Student, tmp_path: Path, source: str, target: str
) -> None:
    test = kinds.rows("test")
    rows = [{"name": f"n{i}", "note": 'quote " and, comma\nline é', "text": e.question} for i, e in enumerate(test)]
    path = write(tmp_path / f"in.{source}", rows)
    out = tmp_path / f"out.{target}"
    # Chunks of 10 rows: the order has to survive both them and the batches by length.
    assert predict_file(kinds_student.directory, path, out, batch_rows=10) == len(rows)
    found = read(out)
    assert [list(row) for row in found] == [["name", "note", "text", *NEW]] * len(rows)
    assert [{k: row[k] for k in ("name", "note", "text")} for row in found] == rows
    for row, probs in zip(found, kinds_student.predict_proba(test), strict=True):
        np.testing.assert_allclose(row["probs"], probs, atol=1e-6)
        assert row["prediction_index"] == probs.argmax()
        assert row["prediction"] == kinds.labels[probs.argmax()]
        assert row["confidence"] == max(row["probs"])
    assert sorted(p.name for p in tmp_path.iterdir()) == sorted({path.name, out.name})


@pytest.mark.parametrize("suffix", FORMATS)
def test_multiple_choice_with_a_list_column(which: Task, which_student: Student, tmp_path: Path, suffix: str) -> None:
    test = which.rows("test")
    path = write(tmp_path / f"in.{suffix}", [{"question": e.question, "choices": list(e.options)} for e in test])
    out = tmp_path / f"out.{suffix}"
    predict_file(which_student.directory, path, out)
    for row, e, probs in zip(read(out), test, which_student.predict_proba(test), strict=True):
        np.testing.assert_allclose(row["probs"], probs, atol=1e-6)
        assert row["prediction"] == e.options[row["prediction_index"]]


def test_multiple_choice_with_one_column_an_option(which: Task, which_student: Student, tmp_path: Path) -> None:
    test = which.rows("test")
    rows = [{"stem": e.question, **dict(zip("ABCD", [*e.options, "", ""], strict=False))} for e in test]
    path = write(tmp_path / "in.csv", rows)
    predict_file(which_student.directory, path, tmp_path / "out.csv", question="stem", options=list("ABCD"))
    found = read(tmp_path / "out.csv")
    assert [len(row["probs"]) for row in found] == [len(e.options) for e in test]
    expected = [e.options[p.argmax()] for e, p in zip(test, which_student.predict_proba(test), strict=True)]
    assert [row["prediction"] for row in found] == expected


def test_parquet_keeps_its_types_and_json_writes_them_as_text(kinds_student: Student, tmp_path: Path) -> None:
    schema = pa.schema({"day": pa.date32(), "small": pa.int8(), "tags": pa.list_(pa.string()), "text": pa.string()})
    day = datetime.date(2026, 3, 1)
    rows = [{"day": day, "small": None, "tags": ["a"], "text": "the dog"}]
    pq.write_table(pa.Table.from_pylist(rows, schema=schema), tmp_path / "in.parquet")
    predict_file(kinds_student.directory, tmp_path / "in.parquet", tmp_path / "out.parquet")
    assert pq.read_schema(tmp_path / "out.parquet").names == [*schema.names, *NEW]
    assert [pq.read_schema(tmp_path / "out.parquet").field(n).type for n in schema.names] == schema.types
    predict_file(kinds_student.directory, tmp_path / "in.parquet", tmp_path / "out.jsonl")
    assert read(tmp_path / "out.jsonl")[0]["day"] == "2026-03-01"
    predict_file(kinds_student.directory, tmp_path / "in.parquet", tmp_path / "out.csv")
    assert read(tmp_path / "out.csv")[0]["tags"] == '["a"]'


def test_columns_that_only_later_rows_have_are_kept(kinds_student: Student, tmp_path: Path) -> None:
    rows = [{"text": "the dog", "n": 1}, {"text": "a saw", "n": 2.5, "extra": "x"}]
    path = write(tmp_path / "in.jsonl", rows)
    for suffix in FORMATS:
        out = tmp_path / f"out.{suffix}"
        predict_file(kinds_student.directory, path, out, batch_rows=1)
        first, second = read(out)
        assert (first.get("extra") or None, second["extra"]) == (None, "x")
        assert [float(first["n"]), float(second["n"])] == [1, 2.5]


def test_mixed_types_cannot_become_parquet_but_can_stay_jsonl(kinds_student: Student, tmp_path: Path) -> None:
    path = write(tmp_path / "in.jsonl", [{"text": "the dog", "n": 1}, {"text": "a saw", "n": "two"}])
    with pytest.raises(DataError, match=r"mixes types.*write \.jsonl"):
        predict_file(kinds_student.directory, path, tmp_path / "out.parquet", batch_rows=1)
    assert [p.name for p in tmp_path.iterdir()] == ["in.jsonl"]
    predict_file(kinds_student.directory, path, tmp_path / "out.jsonl")
    assert [row["n"] for row in read(tmp_path / "out.jsonl")] == [1, "two"]


def test_the_first_known_text_column_is_taken_unless_one_is_named(kinds_student: Student, tmp_path: Path) -> None:
    path = write(tmp_path / "in.jsonl", [{"input": "the saw", "sentence": "the dog", "mine": "the bread"}])
    predict_file(kinds_student.directory, path, tmp_path / "a.jsonl")
    predict_file(kinds_student.directory, path, tmp_path / "b.jsonl", question="mine")
    assert read(tmp_path / "a.jsonl")[0]["prediction"] == "animal"
    assert read(tmp_path / "b.jsonl")[0]["prediction"] == "food"


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ([{"body": "the dog"}], r"in\.jsonl:1: no column 'question' or 'text'.*found 'body'.*--question"),
        ([{"text": "a"}, {"words": "b"}], r"in\.jsonl:2: no column 'text'; found 'words'; the first row has it"),
        ([{"text": "the dog"}, {"text": "  "}], r"in\.jsonl:2: text is empty"),
        ([{"text": "the dog"}, {"text": 7}], r"in\.jsonl:2: text: expected text, found 7"),
        ([{"text": "the dog", "probs": [1]}], r"has a column 'probs' already"),
        ([], "has no rows"),
    ],
)
def test_rows_that_cannot_be_used(
    kinds_student: Student, tmp_path: Path, rows: list[dict[str, Any]], message: str
) -> None:
    path = write(tmp_path / "in.jsonl", rows)
    with pytest.raises(DataError, match=message):
        predict_file(kinds_student.directory, path, tmp_path / "out.jsonl")
    assert [p.name for p in tmp_path.iterdir()] == ["in.jsonl"]


@pytest.mark.parametrize(
    ("row", "options", "message"),
    [
        ({"question": "which ?"}, None, r"no column 'choices' or 'options'.*--options"),
        ({"question": "which ?", "A": "saw"}, ["A", "B"], r"no column 'B'.*--options"),
        ({"question": "which ?", "choices": "saw or cow"}, None, r"choices: expected a list"),
        ({"question": "which ?", "choices": ["saw", 3]}, None, r"choices\[1\]: expected text"),
        ({"question": "which ?", "choices": ["saw"]}, None, r"1 option\(s\)"),
        ({"question": "which ?", "choices": ["saw", "saw"]}, None, r"'saw' occurs twice"),
    ],
)
def test_options_that_cannot_be_used(
    which_student: Student, tmp_path: Path, row: dict[str, Any], options: list[str] | None, message: str
) -> None:
    path = write(tmp_path / "in.jsonl", [row])
    with pytest.raises(DataError, match=rf"in\.jsonl:1: .*{message}"):
        predict_file(which_student.directory, path, tmp_path / "out.jsonl", options=options)


def test_a_classifier_takes_no_options(kinds_student: Student, tmp_path: Path) -> None:
    path = write(tmp_path / "in.jsonl", [{"text": "the dog", "choices": ["a", "b"]}])
    with pytest.raises(DataError, match="its own 3 labels"):
        predict_file(kinds_student.directory, path, tmp_path / "out.jsonl", options="choices")


def test_files_that_cannot_be_used(kinds_student: Student, tiny_bert: Path, tmp_path: Path) -> None:
    path = write(tmp_path / "in.jsonl", [{"text": "the dog"}])
    out = tmp_path / "out.jsonl"
    student = kinds_student.directory
    with pytest.raises(DataError, match=r"out\.xlsx: cannot tell the format.*\.parquet"):
        predict_file(student, path, tmp_path / "out.xlsx")
    with pytest.raises(DataError, match=r"in\.tsv: cannot tell the format"):
        predict_file(student, tmp_path / "in.tsv", out)
    with pytest.raises(DataError, match=r"absent\.csv: no such file"):
        predict_file(student, tmp_path / "absent.csv", out)
    with pytest.raises(DataError, match="is the input"):
        predict_file(student, path, path, overwrite=True)
    with pytest.raises(ModelError, match="not a student"):
        predict_file(tiny_bert, path, out)
    out.write_text("kept\n")
    with pytest.raises(DataError, match="exists already"):
        predict_file(student, path, out)
    assert out.read_text() == "kept\n"
    predict_file(student, path, out, overwrite=True)
    assert read(out)[0]["prediction"] == "animal"


def test_memory_holds_one_chunk_at_a_time(
    kinds_student: Student, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sizes: list[int] = []
    original = Student.predict_proba

    def spy(self: Student, examples: list[Example], **options: int) -> list[np.ndarray]:
        sizes.append(len(examples))
        return original(self, examples, **options)

    monkeypatch.setattr(Student, "predict_proba", spy)
    path = write(tmp_path / "in.parquet", [{"text": "the dog"}] * 25)
    predict_file(kinds_student.directory, path, tmp_path / "out.csv", batch_rows=10)
    assert sizes == [10, 10, 5]


def test_a_failure_in_the_middle_leaves_no_output(
    kinds_student: Student, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls: list[int] = []
    original = Student.predict_proba

    def fail_later(self: Student, examples: list[Example], **options: int) -> list[np.ndarray]:
        calls.append(len(examples))
        if len(calls) == 2:
            raise KeyboardInterrupt
        return original(self, examples, **options)

    monkeypatch.setattr(Student, "predict_proba", fail_later)
    for suffix in FORMATS:
        calls.clear()
        path = write(tmp_path / "in.jsonl", [{"text": "the dog"}] * 6)
        with pytest.raises(KeyboardInterrupt):
            predict_file(kinds_student.directory, path, tmp_path / f"out.{suffix}", batch_rows=2)
    assert [p.name for p in tmp_path.iterdir()] == ["in.jsonl"]


@pytest.mark.parametrize("suffix", FORMATS)
@pytest.mark.parametrize("value", ["\ud800", ["a", {"b": "\udfff"}]])
def test_half_a_surrogate_pair_is_found_before_the_student_is_loaded(
    kinds_student: Student, tmp_path: Path, value: Any, suffix: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("probekd.student.predict.open_student", lambda *_, **__: pytest.fail("the student was loaded"))
    path = write(tmp_path / "in.jsonl", [{"text": "the dog"}, {"text": "a saw", "note": value}])
    with pytest.raises(DataError, match=r"in\.jsonl:2: 'note': holds half of a surrogate pair"):
        predict_file(kinds_student.directory, path, tmp_path / f"out.{suffix}")
    assert [p.name for p in tmp_path.iterdir()] == ["in.jsonl"]


def test_what_json_has_no_number_for_is_null(kinds_student: Student, tmp_path: Path) -> None:
    rows = [{"text": "the dog", "n": float("nan"), "all": [1.5, float("inf")], "in": {"x": float("nan")}}]
    path = write(tmp_path / "in.parquet", rows)
    predict_file(kinds_student.directory, path, tmp_path / "out.jsonl")
    predict_file(kinds_student.directory, path, tmp_path / "out.csv")
    (found,) = read(tmp_path / "out.jsonl")
    assert [found[name] for name in ("n", "all", "in")] == [None, [1.5, None], {"x": None}]
    (found,) = read(tmp_path / "out.csv")
    assert (found["all"], found["in"]) == ("[1.5, null]", '{"x": null}')


@pytest.mark.parametrize("batch_rows", [1, 10])
@pytest.mark.parametrize(
    ("values", "line"),
    [
        ([None, {}], 2),
        ([None, [{}]], 2),
        ([1, 2**63], 2),
        ([{"n": 1}, {"n": 2**70}, {"n": 1}], 2),
        ([1, 2, "two", 3], 3),
        ([{"n": 1}, {"n": "x"}], 2),
        ([1, 2**53 + 1, 2], None),
    ],
)
def test_what_parquet_cannot_hold(
    kinds_student: Student, tmp_path: Path, values: list[Any], line: int | None, batch_rows: int
) -> None:
    rows = [{"text": "the dog", "meta": value} for value in [*values, *([0.5] if line is None else [])]]
    path = write(tmp_path / "in.jsonl", rows)
    where = rf"in\.jsonl:{line or '[0-9]'}: 'meta': .* Parquet .*; write \.jsonl instead"
    with pytest.raises(DataError, match=where):
        predict_file(kinds_student.directory, path, tmp_path / "out.parquet", batch_rows=batch_rows)
    assert [p.name for p in tmp_path.iterdir()] == ["in.jsonl"]
    predict_file(kinds_student.directory, path, tmp_path / "out.jsonl")
    assert [row["meta"] for row in read(tmp_path / "out.jsonl")] == [row["meta"] for row in rows]
