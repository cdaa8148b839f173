"""Task files: what a good one gives, and one case for each bad input with the message it must lead to."""

import csv
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml

from probekd.errors import ConfigError, DataError, ProbeKDError
from probekd.tasks import Task, load_task
from probekd.tasks.files import read_task_file

MC: dict[str, Any] = {"name": "mc", "kind": "multiple_choice", "data": {"train": "train.jsonl", "test": "test.jsonl"}}
TEXT: dict[str, Any] = {"name": "text", "kind": "classification", "data": {"train": "train.csv", "test": "test.csv"}}
REMOVE = object()


def jsonl(*rows: Mapping[str, Any]) -> str:
    return "".join(json.dumps(row) + "\n" for row in rows)


def build(folder: Path, spec: Mapping[str, Any], files: Mapping[str, str]) -> Path:
    for name, text in files.items():
        (folder / name).write_text(text, encoding="utf-8")
    path = folder / "task.yaml"
    path.write_text(yaml.safe_dump(dict(spec)), encoding="utf-8")
    return path


def question(text: Any, answer: Any = 0, options: Any = ("x", "y", "z"), **more: Any) -> dict[str, Any]:
    return {"question": text, "options": options, "answer": answer, **more}


GOOD_MC = {"train.jsonl": jsonl(question("q1", 0), question("q2", 2)), "test.jsonl": jsonl(question("q3", 1))}
GOOD_TEXT = {
    "train.csv": "question,answer\nmy card,billing\nit broke,bug\nhello,\n",
    "test.csv": "question,answer\nwhat now,bug\n",
}


def answers(task: Task, split: str = "train") -> list[int | None]:
    return [e.answer for e in task.splits[split]]


def test_multiple_choice_from_jsonl(tmp_path: Path) -> None:
    task = read_task_file(build(tmp_path, MC, GOOD_MC))
    assert (task.name, task.kind, task.labels) == ("mc", "multiple_choice", ())
    assert [(e.id, e.question, e.options, e.answer) for e in task.rows()] == [
        ("train/0", "q1", ("x", "y", "z"), 0),
        ("train/1", "q2", ("x", "y", "z"), 2),
        ("test/0", "q3", ("x", "y", "z"), 1),
    ]


def test_paths_are_relative_to_the_task_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = build(tmp_path, MC, GOOD_MC)
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    monkeypatch.chdir(elsewhere)
    assert len(read_task_file(path).rows()) == 3


def test_options_from_columns_end_at_the_last_filled_one(tmp_path: Path) -> None:
    spec = {
        **MC,
        "data": {"train": "train.csv", "validation": "test.csv"},
        "columns": {
            "id": "n",
            "question": "stem",
            "options": ["a", "b", "c", "d"],
            "answer": "key",
            "subject": "field",
        },
    }
    head = "n,field,stem,a,b,c,d,key\n"
    files = {
        "train.csv": head + "7,bio, how? ,w,x,y,z,D\n8,,why?,w,x,,,b\n",
        "test.csv": head + "9,bio,who?,w,x,y,,C\n",
    }
    task = read_task_file(build(tmp_path, spec, files))
    assert [(e.id, e.question, e.options, e.answer, e.subject) for e in task.rows()] == [
        ("7", "how?", ("w", "x", "y", "z"), 3, "bio"),
        ("8", "why?", ("w", "x"), 1, ""),
        ("9", "who?", ("w", "x", "y"), 2, "bio"),
    ]


def test_options_as_a_json_list_in_csv(tmp_path: Path) -> None:
    spec = {**MC, "data": {"train": "t.csv", "test": "u.csv"}}
    files = {n: f'question,options,answer\nq{n},"[""a, b"", ""c""]",c\n' for n in ("t.csv", "u.csv")}
    task = read_task_file(build(tmp_path, spec, files))
    assert task.splits["train"][0].options == ("a, b", "c")
    assert answers(task) == [1]


def test_parquet_with_the_floats_that_pandas_makes_of_gaps(tmp_path: Path) -> None:
    table = {"question": ["p", "q", "r"], "options": [["x", "y"]] * 3, "answer": [1.0, None, float("nan")]}
    pq.write_table(pa.table(table), tmp_path / "t.parquet")
    spec = {**MC, "data": {"train": "t.parquet", "test": "test.jsonl"}}
    assert answers(read_task_file(build(tmp_path, spec, GOOD_MC))) == [1, None, None]


def test_answers_of_the_unlabelled_split_are_dropped(tmp_path: Path) -> None:
    spec = {**MC, "data": {**MC["data"], "unlabelled": "pool.jsonl"}}
    pool = jsonl(question("p1", "nonsense"), {"question": "p2", "options": ["x", "y"]})
    task = read_task_file(build(tmp_path, spec, {**GOOD_MC, "pool.jsonl": pool}))
    assert answers(task, "unlabelled") == [None, None]


@pytest.mark.parametrize(
    ("written", "expected"),
    [
        ([0, 2, 1], [0, 2, 1]),
        (["0", "2", "1.0"], [0, 2, 1]),
        (["A", "c", " B "], [0, 2, 1]),
        (["x", "z", "y "], [0, 2, 1]),
        ([0, None, ""], [0, None, None]),
    ],
)
def test_auto_format_of_multiple_choice(tmp_path: Path, written: Sequence[Any], expected: Sequence[int | None]) -> None:
    train = jsonl(*(question(f"q{i}", answer) for i, answer in enumerate(written)))
    test = jsonl(question("t", written[0]))
    task = read_task_file(build(tmp_path, MC, {"train.jsonl": train, "test.jsonl": test}))
    assert answers(task) == expected


def test_auto_format_is_one_for_the_whole_task(tmp_path: Path) -> None:
    """ "1" is an option's text in the first row, but the second shows that the column holds indices."""
    train = jsonl(question("q1", "1", ["3", "2", "1"]), question("q2", "0", ["5", "6", "7"]))
    test = jsonl(question("q3", "2"))
    task = read_task_file(build(tmp_path, MC, {"train.jsonl": train, "test.jsonl": test}))
    assert answers(task) == [1, 0]


def test_ambiguous_answers_are_refused_until_the_format_is_named(tmp_path: Path) -> None:
    rows = jsonl(question("q1", "1", ["0", "2", "1"]))
    files = {"train.jsonl": rows, "test.jsonl": jsonl(question("q2", "0", ["1", "0", "2"]))}
    with pytest.raises(
        DataError, match=r"answers can be read as text and as index: .*train\.jsonl:1 means option 2 or 1"
    ):
        read_task_file(build(tmp_path, MC, files))
    assert answers(read_task_file(build(tmp_path, {**MC, "answer_format": "text"}, files))) == [2]
    assert answers(read_task_file(build(tmp_path, {**MC, "answer_format": "index"}, files))) == [1]


def test_labels_are_inferred_from_train_and_noted(tmp_path: Path) -> None:
    task = read_task_file(build(tmp_path, TEXT, GOOD_TEXT))
    assert task.labels == ("billing", "bug")
    assert answers(task) == [0, 1, None]
    assert all(e.options == task.labels for e in task.rows())
    assert task.notes == ("label set of 2 inferred from train: billing, bug",)


def test_numeric_labels_sort_as_numbers(tmp_path: Path) -> None:
    train = "question,answer\n" + "".join(f"q{n},{n}\n" for n in (10, 9, 1))
    task = read_task_file(build(tmp_path, TEXT, {"train.csv": train, "test.csv": "question,answer\nt,9\n"}))
    assert task.labels == ("1", "9", "10")
    assert answers(task) == [2, 1, 0]
    assert "names better than numbers" in task.notes[0]


def test_given_labels_keep_their_order_and_take_indices(tmp_path: Path) -> None:
    spec = {**TEXT, "labels": ["bug", "billing", "other"]}
    assert answers(read_task_file(build(tmp_path, spec, GOOD_TEXT))) == [1, 0, None]
    files = {"train.csv": "question,answer\na,0\nb,2\n", "test.csv": "question,answer\nc,1\n"}
    assert answers(read_task_file(build(tmp_path, spec, files))) == [0, 2]


def test_star_ratings_are_names_when_an_index_would_not_fit(tmp_path: Path) -> None:
    spec = {**TEXT, "labels": ["1", "2", "3"]}
    files = {"train.csv": "question,answer\na,1\nb,3\n", "test.csv": "question,answer\nc,2\n"}
    assert answers(read_task_file(build(tmp_path, spec, files))) == [0, 2]


def mc_rows(*rows: Mapping[str, Any]) -> dict[str, str]:
    return {**GOOD_MC, "train.jsonl": jsonl(question("first", 0), *rows)}


def with_data(**splits: Any) -> dict[str, Any]:
    return {**MC, "data": {k: v for k, v in {**MC["data"], **splits}.items() if v is not REMOVE}}


def csv_rows(*lines: str) -> dict[str, str]:
    return {**GOOD_TEXT, "train.csv": "\n".join(("question,answer", "my card,billing", "it broke,bug", *lines)) + "\n"}


CSV_OPTIONS = {**MC, "data": {"train": "train.csv", "test": "train.csv"}, "columns": {"options": ["a", "b", "c"]}}

BAD: dict[str, tuple[type[ProbeKDError], Mapping[str, Any], Mapping[str, str], str]] = {
    # the task file
    "unknown key": (ConfigError, {**MC, "colums": {}}, GOOD_MC, "unknown key 'colums'; did you mean 'columns'?"),
    "unknown split": (ConfigError, with_data(valid="v.jsonl"), GOOD_MC, "'data.valid'; did you mean 'validation'?"),
    "unknown column role": (
        ConfigError,
        {**MC, "columns": {"anwser": "a"}},
        GOOD_MC,
        "'columns.anwser'; did you mean 'answer'?",
    ),
    "unknown hub key": (
        ConfigError,
        with_data(train={"hub": "a/b", "spilt": "x"}),
        GOOD_MC,
        "'data.train.spilt'; did you mean 'split'?",
    ),
    "unknown kind": (ConfigError, {**MC, "kind": "choice"}, GOOD_MC, "task.yaml: kind: "),
    "no train": (ConfigError, with_data(train=REMOVE), GOOD_MC, "the key 'data.train' is missing"),
    "nothing to measure": (ConfigError, with_data(test=REMOVE), GOOD_MC, "give validation or test"),
    "path and hub": (
        ConfigError,
        with_data(train={"hub": "a/b", "path": "x"}),
        GOOD_MC,
        "data.train: give either path",
    ),
    "hub split of a path": (ConfigError, with_data(train={"path": "x", "split": "y"}), GOOD_MC, "belong to hub"),
    "name is a path": (ConfigError, {**MC, "name": "../up"}, GOOD_MC, "task.yaml: name: "),
    "labels of multiple choice": (
        ConfigError,
        {**MC, "labels": ["a", "b"]},
        GOOD_MC,
        "labels belong to classification",
    ),
    "options of classification": (
        ConfigError,
        {**TEXT, "columns": {"options": "o"}},
        GOOD_TEXT,
        "columns.options belongs to multiple_choice",
    ),
    "letters of classification": (ConfigError, {**TEXT, "answer_format": "letter"}, GOOD_TEXT, "answer_format letter"),
    "index without labels": (
        ConfigError,
        {**TEXT, "answer_format": "index"},
        GOOD_TEXT,
        "answer_format index needs labels",
    ),
    "YAML booleans": (
        ConfigError,
        {**TEXT, "labels": [True, False]},
        GOOD_TEXT,
        "labels: the label True is not text; put it in quotes",
    ),
    "label twice": (ConfigError, {**TEXT, "labels": ["bug", "bug "]}, GOOD_TEXT, "labels: a label occurs twice"),
    "one label": (ConfigError, {**TEXT, "labels": ["bug"]}, GOOD_TEXT, "task.yaml: labels: "),
    "bad prompt key": (
        ConfigError,
        {**MC, "prompt": {"templat": "x"}},
        GOOD_MC,
        "'prompt.templat'; did you mean 'template'?",
    ),
    # files
    "missing file": (DataError, with_data(train="gone.jsonl"), GOOD_MC, "gone.jsonl: no such file"),
    "empty split": (DataError, MC, {**GOOD_MC, "test.jsonl": "\n"}, "the split test has no rows (test.jsonl)"),
    "header only": (DataError, TEXT, {**GOOD_TEXT, "train.csv": "question,answer\n"}, "the split train has no rows"),
    "malformed line": (DataError, MC, {**GOOD_MC, "train.jsonl": '{"question"\n'}, "train.jsonl:1: not valid JSON"),
    "ragged CSV": (DataError, TEXT, csv_rows("a, b,bug"), "train.csv:4: 3 cell(s)"),
    # columns
    "absent question column": (
        DataError,
        {**TEXT, "columns": {"question": "text"}},
        {**GOOD_TEXT, "train.csv": "id,txet,answer\n1,a,b\n"},
        "train.csv:2: no column 'text' (did you mean 'txet'?); found 'id', 'txet', 'answer'",
    ),
    "absent answer column": (
        DataError,
        TEXT,
        {**GOOD_TEXT, "train.csv": "question,answr\na,b\n"},
        "train.csv:2: no column 'answer' (did you mean 'answr'?); found 'question', 'answr'",
    ),
    "absent id column": (
        DataError,
        {**TEXT, "columns": {"id": "key"}},
        GOOD_TEXT,
        "train.csv:4: no column 'key'; found 'question'",
    ),
    "absent subject column": (DataError, {**TEXT, "columns": {"subject": "field"}}, GOOD_TEXT, "no column 'field'"),
    "absent option column": (
        DataError,
        CSV_OPTIONS,
        {"train.csv": "question,a,b,answer\nq,x,y,0\n"},
        "train.csv:2: no column 'c'",
    ),
    # cells
    "empty question": (DataError, MC, mc_rows(question(" ")), "train.jsonl:2: question is empty"),
    "numeric question": (DataError, MC, mc_rows(question(5)), "train.jsonl:2: question: expected text, found 5"),
    "null question": (DataError, MC, mc_rows(question(None)), "train.jsonl:2: question: expected text, found None"),
    "numeric option": (
        DataError,
        MC,
        mc_rows(question("q", 0, ["x", 2])),
        "train.jsonl:2: options[1]: expected text, found 2",
    ),
    "list option": (DataError, MC, mc_rows(question("q", 0, ["x", ["y"]])), "train.jsonl:2: options[1]: expected text"),
    "empty option": (DataError, MC, mc_rows(question("q", 0, ["x", ""])), "train.jsonl:2: options[1] is empty"),
    "options not a list": (DataError, MC, mc_rows(question("q", 0, "x;y")), "train.jsonl:2: options: expected a list"),
    "one option": (DataError, MC, mc_rows(question("q", 0, ["x"])), "train.jsonl:2: 1 option(s)"),
    "eleven options": (DataError, MC, mc_rows(question("q", 0, list("abcdefghijk"))), "train.jsonl:2: 11 option(s)"),
    "equal options": (
        DataError,
        MC,
        mc_rows(question("q", 0, ["x", "y", "x "])),
        "train.jsonl:2: the option 'x' occurs twice",
    ),
    "gap in the options": (
        DataError,
        CSV_OPTIONS,
        {"train.csv": "question,a,b,c,answer\nq,x,,z,C\n"},
        "train.csv:2: b is empty",
    ),
    "broken escape": (
        DataError,
        MC,
        {**GOOD_MC, "train.jsonl": '{"question": "\\ud800", "options": ["a", "b"], "answer": 0}\n'},
        "train.jsonl:1: question: holds half of a surrogate pair",
    ),
    "boolean id": (DataError, MC, mc_rows(question("q", id=True)), "train.jsonl:2: id: expected text, found True"),
    "id twice": (
        DataError,
        MC,
        {"train.jsonl": jsonl(question("a", id="k")), "test.jsonl": jsonl(question("b"), question("c", id="k"))},
        "test.jsonl:2: the id 'k' is already taken by ",
    ),
    # answers
    "index out of range": (
        DataError,
        MC,
        mc_rows(question("q", 3)),
        "train.jsonl:2: answer 3 is outside the 3 options, which are counted from 0; if the file counts from 1, subtract 1",
    ),
    "negative index": (DataError, MC, mc_rows(question("q", -1)), "train.jsonl:2: answer -1 is outside the 3 options"),
    "fractional index": (
        DataError,
        MC,
        mc_rows(question("q", 0.5)),
        "train.jsonl:2: answer 0.5 is not a 0-based index",
    ),
    "boolean answer": (
        DataError,
        MC,
        mc_rows(question("q", True)),
        "train.jsonl:2: answer True is not a 0-based index",
    ),
    "mixed formats": (
        DataError,
        MC,
        mc_rows(question("q", "B")),
        "train.jsonl:2: answer 'B' is not a 0-based index (2 of 3",
    ),
    "letter out of range": (
        DataError,
        {**MC, "answer_format": "letter"},
        {n: jsonl(question(n, "D")) for n in GOOD_MC},
        "train.jsonl:1: answer D is outside the 3 options, A to C",
    ),
    "unknown option text": (
        DataError,
        {**MC, "answer_format": "text"},
        {n: jsonl(question(n, "Pariss", ["Paris", "Rome"])) for n in GOOD_MC},
        "train.jsonl:1: answer 'Pariss' is not one of the row's options; did you mean 'Paris'?",
    ),
    "unknown label": (
        DataError,
        {**TEXT, "labels": ["billing", "bug"]},
        csv_rows("again,bilings"),
        "train.csv:4: label 'bilings' is not in the label set (the key labels, else what train has); did you mean 'billing'?",
    ),
    "label of test that train lacks": (
        DataError,
        TEXT,
        {**GOOD_TEXT, "test.csv": "question,answer\nq,shipping\n"},
        "test.csv:2: label 'shipping' is not in",
    ),
    "one label in train": (
        DataError,
        TEXT,
        {**GOOD_TEXT, "train.csv": "question,answer\na,bug\n"},
        "train has one label only, 'bug'",
    ),
    "nothing labelled": (
        DataError,
        TEXT,
        {**GOOD_TEXT, "train.csv": "question,answer\na,\nb, \n"},
        "no row of train has an answer",
    ),
}


@pytest.mark.parametrize(("kind", "spec", "files", "expected"), BAD.values(), ids=BAD)
def test_bad_input(
    tmp_path: Path, kind: type[ProbeKDError], spec: Mapping[str, Any], files: Mapping[str, str], expected: str
) -> None:
    with pytest.raises(kind) as caught:
        read_task_file(build(tmp_path, spec, files))
    assert expected in str(caught.value)


def test_inferred_labels_are_names_so_no_other_format_is_suggested(tmp_path: Path) -> None:
    files = {**GOOD_TEXT, "test.csv": "question,answer\nq,shipping\n"}
    with pytest.raises(DataError, match=r"test\.csv:2: label 'shipping' is not .*; there are 'billing', 'bug'$"):
        read_task_file(build(tmp_path, TEXT, files))


def test_duplicate_id_names_both_places(tmp_path: Path) -> None:
    files = {**GOOD_MC, "train.jsonl": jsonl(question("a", id="k"), question("b", id="k"))}
    with pytest.raises(DataError, match=r"train\.jsonl:2: the id 'k' is already taken by .*train\.jsonl:1;"):
        read_task_file(build(tmp_path, MC, files))


def test_default_id_may_clash_with_a_given_one(tmp_path: Path) -> None:
    files = {**GOOD_MC, "train.jsonl": jsonl(question("a", id="train/1"), question("b"))}
    with pytest.raises(DataError, match="'train/1' is already taken"):
        read_task_file(build(tmp_path, MC, files))


def test_row_of_csv_after_a_cell_with_line_ends(tmp_path: Path) -> None:
    with (tmp_path / "train.csv").open("w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows(
            [["question", "answer"], ["one\ntwo\nthree", "bug"], ["four", "billing"], ["", "bug"]]
        )
    (tmp_path / "test.csv").write_text(GOOD_TEXT["test.csv"], encoding="utf-8")
    with pytest.raises(DataError, match=r"train\.csv:6: question is empty"):
        read_task_file(build(tmp_path, TEXT, {}))


def test_load_task_reads_the_example() -> None:
    example = Path(__file__).parents[2] / "examples" / "tickets" / "task.yaml"
    task = load_task(example, labels=80)
    assert {split: len(rows) for split, rows in task.splits.items()} == {"train": 80, "test": 60, "unlabelled": 80}
    assert task.labels == ("account", "billing", "bug", "shipping")
    assert task.notes == ()
