import json
import os
from pathlib import Path

import pytest

from probekd.errors import DataError
from probekd.tasks import BUILTIN, aqua, arc, banking77, load_task, mmlu
from probekd.tasks.base import Example, Task
from probekd.tasks.benchmark import DATA_VARIABLE, drop_equal_options

DATA = os.environ.get(DATA_VARIABLE)
needs_data = pytest.mark.skipif(not DATA, reason=f"{DATA_VARIABLE} does not name the benchmarks' directory")


def hub_rows(monkeypatch: pytest.MonkeyPatch, rows: list[dict[str, object]], **features: object) -> list[object]:
    """Let every Hub dataset consist of ``rows``; gives the list that will hold what was asked for."""
    import datasets

    table = datasets.Dataset.from_list(rows)
    for column, feature in features.items():
        table = table.cast_column(column, feature)
    asked: list[object] = []

    def load(name: str, config: str | None, *, split: str, revision: str | None) -> datasets.Dataset:
        asked.append((name, config, split))
        return table

    monkeypatch.setattr(datasets, "load_dataset", load)
    monkeypatch.delenv(DATA_VARIABLE, raising=False)
    return asked


def test_arc_row_with_numeric_key() -> None:
    row = {
        "id": "NYSEDREGENTS_1",
        "question": "Which?",
        "choices": {"text": ["rock", "water", "air"], "label": ["1", "2", "3"]},
        "answerKey": "3",
    }
    expected = {"id": "NYSEDREGENTS_1", "question": "Which?", "choices": ["rock", "water", "air"], "answer": 2}
    assert arc.from_hub(row) == expected


def test_arc_row_with_five_options() -> None:
    row = {"id": "M", "question": "?", "choices": {"text": list("vwxyz"), "label": list("ABCDE")}, "answerKey": "E"}
    assert arc.from_hub(row)["answer"] == 4


def test_aqua_row_loses_the_letters_of_its_options() -> None:
    options = ["A)21", "B)21.5", "C) 22 (D)", "D)A) first", "E)None of these"]
    row = {"question": "How many?", "options": options, "rationale": "...", "correct": "C"}
    choices = ["21", "21.5", "22 (D)", "A) first", "None of these"]
    assert aqua.from_hub(row) == {"question": "How many?", "choices": choices, "answer": 2}


def test_mmlu_row() -> None:
    row = {"question": "Q", "subject": "anatomy", "choices": list("wxyz"), "answer": "D"}
    assert mmlu.from_hub(row) == {"question": "Q", "subject": "anatomy", "choices": list("wxyz"), "answer": 3}


def test_banking77_row() -> None:
    row = {"text": "Where is it?", "label": 11, "label_text": "card_arrival"}
    assert banking77.from_hub(row) == {"question": "Where is it?", "answer": "card_arrival"}


def test_mmlu_from_the_hub_reads_its_class_label(monkeypatch: pytest.MonkeyPatch) -> None:
    import datasets

    row = {"question": "Q", "subject": "anatomy", "choices": list("wxyz"), "answer": 2}
    asked = hub_rows(monkeypatch, [row], answer=datasets.ClassLabel(names=list("ABCD")))
    task = BUILTIN["mmlu"].read(None)
    assert asked == [("cais/mmlu", "all", split) for split in ("validation", "test", "dev")]
    assert {split: [(e.id, e.answer, e.subject) for e in rows] for split, rows in task.splits.items()} == {
        split: [(f"mmlu/{split}/0", 2, "anatomy")] for split in ("train", "test", "dev")
    }


def test_banking77_from_the_hub_sorts_its_labels(monkeypatch: pytest.MonkeyPatch) -> None:
    names = ["top_up_failed", "card_arrival", "top_up_failed", "pin_blocked", "age_limit", "edit_details"]
    hub_rows(monkeypatch, [{"text": f"t{i}", "label": 5, "label_text": name} for i, name in enumerate(names)])
    task = BUILTIN["banking77"].read(None)
    assert task.labels == ("age limit", "card arrival", "edit details", "pin blocked", "top up failed")
    assert [e.answer for e in task.splits["train"]] == [4, 1, 4, 3, 0, 2]


def test_unreachable_hub_says_how_to_read_files(monkeypatch: pytest.MonkeyPatch) -> None:
    import datasets

    def fail(*args: object, **kw: object) -> None:
        raise ConnectionError("no network")

    monkeypatch.setattr(datasets, "load_dataset", fail)
    monkeypatch.setenv(DATA_VARIABLE, "")
    with pytest.raises(DataError, match=r"no network; .*set PROBEKD_DATA or task\.data_dir .* arc_easy/train\.jsonl"):
        load_task("arc_easy")


@pytest.mark.parametrize("name", ["arc_challenge", "mmlu", "aqua_rat", "banking77"])
def test_missing_folder_names_the_variable_and_the_file(name: str, tmp_path: Path) -> None:
    with pytest.raises(DataError) as caught:
        load_task(name, data_dir=tmp_path)
    folder, file = name.removesuffix("_rat"), "val.jsonl" if name == "mmlu" else "train.jsonl"
    assert str(caught.value).startswith(f"{tmp_path / folder / file}: no such file; task.data_dir")
    assert DATA_VARIABLE in str(caught.value)
    assert f"{folder}/{file}" in str(caught.value)


def test_data_dir_goes_before_the_variable(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for root in ("asked", "variable"):
        folder = tmp_path / root / "arc_easy"
        folder.mkdir(parents=True)
        for split in ("train", "validation", "test"):
            row = {"id": f"{root}-{split}", "question": split, "choices": ["a", "b", "c"], "answer": 2}
            (folder / f"{split}.jsonl").write_text(json.dumps(row) + "\n")
    monkeypatch.setenv(DATA_VARIABLE, str(tmp_path / "variable"))
    assert load_task("arc_easy", data_dir=tmp_path / "asked").rows("test")[0].id == "asked-test"
    assert load_task("arc_easy").rows("test")[0].id == "variable-test"


def test_broken_benchmark_row_names_its_line(tmp_path: Path) -> None:
    (tmp_path / "arc_easy").mkdir()
    for split in ("train", "validation", "test"):
        row = {"id": split, "question": split, "choices": ["a", "b"], "answer": 2}
        (tmp_path / "arc_easy" / f"{split}.jsonl").write_text(json.dumps(row) + "\n")
    with pytest.raises(DataError, match=r"train\.jsonl:1: answer 2 is outside the 2 options"):
        load_task("arc_easy", data_dir=tmp_path)


def test_benchmarks_are_checked_like_any_task(tmp_path: Path) -> None:
    (tmp_path / "arc_easy").mkdir()
    for split in ("train", "validation", "test"):
        row = {"id": "same", "question": split, "choices": ["a", "b"], "answer": 1}
        (tmp_path / "arc_easy" / f"{split}.jsonl").write_text(json.dumps(row) + "\n")
    with pytest.raises(DataError, match="id 'same' occurs 3 times"):
        load_task("arc_easy", data_dir=tmp_path)


def test_rows_with_equal_options_are_left_out_and_counted() -> None:
    def rows(split: str, *options: str) -> tuple[Example, ...]:
        return tuple(Example(id=f"{split}{i}", question="q", options=tuple(o), answer=0) for i, o in enumerate(options))

    # Aa and aa are different genotypes: only equal texts are equal options.
    splits = {"train": rows("a", "xyx", "xy"), "test": rows("b", "xx", "yy", "xX")}
    task = drop_equal_options(Task(name="t", kind="multiple_choice", splits=splits))
    assert [e.id for e in task.rows()] == ["a1", "b2"]
    assert task.notes == (
        "1 train row has two equal options and was left out",
        "2 test rows have two equal options and were left out",
    )


@needs_data
@pytest.mark.parametrize(
    ("name", "sizes", "options"),
    [
        ("arc_easy", {"train": 2251, "validation": 570, "test": 2376}, {3, 4, 5}),
        ("arc_challenge", {"train": 1119, "validation": 299, "test": 1172}, {3, 4, 5}),
        ("aqua_rat", {"train": 2144, "validation": 253, "test": 247}, {5}),
        ("mmlu", {"train": 1528, "test": 14033, "dev": 285}, {4}),
        ("banking77", {"train": 10003, "test": 3080}, {77}),
    ],
)
def test_sizes_of_the_benchmarks(name: str, sizes: dict[str, int], options: set[int]) -> None:
    task = load_task(name, on_overlap="keep")
    assert {split: len(rows) for split, rows in task.splits.items()} == sizes
    assert {len(e.options) for e in task.rows()} == options


@needs_data
def test_answers_of_the_benchmarks_are_those_of_the_files() -> None:
    assert DATA
    lines = (Path(DATA) / "arc_challenge" / "test.jsonl").read_text(encoding="utf-8").split("\n")
    expected = {row["id"]: row["choices"][row["answer"]].strip() for row in map(json.loads, filter(None, lines))}
    task = load_task("arc_challenge")
    assert {e.id: e.options[e.answer] for e in task.rows("test") if e.answer is not None} == expected


@needs_data
def test_subjects_of_mmlu_are_kept_before_rows_are_counted() -> None:
    task = load_task("mmlu", subjects=["anatomy", "virology"])
    assert {e.subject for e in task.rows(*task.splits)} == {"anatomy", "virology"}
    assert len(task.rows("dev")) == 10
    assert task.notes == ()
