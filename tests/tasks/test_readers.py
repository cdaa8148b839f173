import csv
import json
import random
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from probekd.errors import DataError
from probekd.tasks.readers import Source, read_hub, read_rows


def write(path: Path, text: str) -> Path:
    path.write_bytes(text.encode())
    return path


def test_jsonl_gives_objects_with_their_physical_line(tmp_path: Path) -> None:
    # U+2028 ends a line for str.splitlines, but not in JSON Lines.
    path = write(tmp_path / "a.jsonl", '\ufeff{"q": "one\u2028more"}\r\n\n{"q": "two", "n": [1]}')
    assert list(read_rows(path)) == [(f"{path}:1", {"q": "one\u2028more"}), (f"{path}:3", {"q": "two", "n": [1]})]


def test_csv_row_is_named_by_its_first_physical_line(tmp_path: Path) -> None:
    path = write(tmp_path / "a.csv", '\ufeffq,a\n"one,\nstill ""one""",x\n\ntwo,\n')
    assert list(read_rows(path)) == [
        (f"{path}:2", {"q": 'one,\nstill "one"', "a": "x"}),
        (f"{path}:5", {"q": "two", "a": ""}),
    ]


def test_parquet_rows_count_from_zero_over_batches(tmp_path: Path) -> None:
    path = tmp_path / "a.parquet"
    questions = [f"q{i}" for i in range(2500)]
    pq.write_table(pa.table({"q": questions, "o": [["x", "y"]] * 2500}), path, row_group_size=700)
    rows = list(read_rows(path))
    assert rows == [(f"{path} row {i}", {"q": q, "o": ["x", "y"]}) for i, q in enumerate(questions)]


def test_rows_stream_so_a_fault_further_down_is_not_seen_yet(tmp_path: Path) -> None:
    rows = read_rows(write(tmp_path / "a.jsonl", '{"q": 1}\nnot json\n'))
    assert next(rows)[1] == {"q": 1}
    with pytest.raises(DataError, match=r"a\.jsonl:2: not valid JSON"):
        next(rows)


@pytest.mark.parametrize(
    ("name", "content", "expected"),
    [
        ("a.jsonl", b'{"q": 1}\n{"q": \n', "a.jsonl:2: not valid JSON: Expecting value at column 6"),
        ("a.jsonl", b'{"q": 1}\n\n[1, 2]\n', "a.jsonl:3: expected a JSON object, found list"),
        ("a.jsonl", b'{"q": 1}\n{"q": "caf\xe9"}\n', "a.jsonl:2: not UTF-8 (byte 0xe9 at position 10)"),
        ("a.jsonl", b'{"q": ' + b"[" * 200_000 + b"\n", "a.jsonl:1: not usable JSON"),
        ("a.jsonl", b'{"q": ' + b"9" * 5000 + b"}\n", "a.jsonl:1: not usable JSON"),
        ("a.csv", b"", "a.csv: the file is empty"),
        ("a.csv", b"q,a\n1,2\n1,2,3\n", "a.csv:3: 3 cell(s), but the header has 2"),
        ("a.csv", b'q,a\n"1\n2",2\n1\n', "a.csv:4: 1 cell(s), but the header has 2"),
        ("a.csv", b'q,a\n1,2\n"1,2\n3,4\n', "a.csv:3: not valid CSV"),
        ("a.csv", b"q,a,q\n1,2,3\n", "a.csv:1: the column 'q' occurs twice"),
        ("a.csv", b"q,a\n1,2\n\xff,2\n", "a.csv:3: not UTF-8 (byte 0xff at position 0)"),
        ("a.csv", b"q,a\r1,2\r", "a.csv:1: not valid CSV"),
        ("a.parquet", b"PAR1 not really", "a.parquet: not a readable Parquet file"),
        ("a.txt", b"q", "a.txt: cannot tell the format from its name; expected .jsonl, .csv, .parquet"),
    ],
)
def test_bad_file_is_one_clear_error(tmp_path: Path, name: str, content: bytes, expected: str) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(DataError) as caught:
        list(read_rows(tmp_path / name))
    assert expected in str(caught.value)
    assert "\n" not in str(caught.value)


def test_missing_file_and_directory(tmp_path: Path) -> None:
    (tmp_path / "folder.csv").mkdir()
    with pytest.raises(DataError, match=r"none\.csv: no such file"):
        read_rows(tmp_path / "none.csv")
    with pytest.raises(DataError, match=r"folder\.csv: is a directory"):
        read_rows(tmp_path / "folder.csv")


def test_hub_label_columns_are_read_as_names(monkeypatch: pytest.MonkeyPatch) -> None:
    import datasets

    features = datasets.Features({"text": datasets.Value("string"), "label": datasets.ClassLabel(names=["no", "yes"])})
    table = datasets.Dataset.from_dict({"text": ["a", "b", "c"], "label": [1, -1, None]}, features=features)
    asked: list[object] = []

    def load(*args: object, **kw: object) -> datasets.Dataset:
        asked.append((args, kw))
        return table

    monkeypatch.setattr(datasets, "load_dataset", load)
    rows = list(read_hub(Source(hub="some/set", config="c", revision="r"), "train"))
    assert asked == [(("some/set", "c"), {"split": "train", "revision": "r"})]
    assert [row for _, row in rows] == [{"text": t, "label": n} for t, n in (("a", "yes"), ("b", None), ("c", None))]
    assert rows[2][0] == "some/set [train] row 2"


def test_unreachable_hub_is_a_data_error(monkeypatch: pytest.MonkeyPatch) -> None:
    import datasets

    def fail(*args: object, **kw: object) -> None:
        raise ConnectionError("Couldn't reach it\nsecond line")

    monkeypatch.setattr(datasets, "load_dataset", fail)
    with pytest.raises(DataError) as caught:
        list(read_hub(Source(hub="some/set"), "train"))
    assert str(caught.value) == "the Hub dataset 'some/set', split 'train', cannot be loaded: Couldn't reach it"


def test_json_lines_with_every_kind_of_value_survive(tmp_path: Path) -> None:
    row = {"q": 'ü\\n"', "o": ["a", None], "n": 1.5, "t": True}
    path = write(tmp_path / "a.jsonl", json.dumps(row))
    assert list(read_rows(path)) == [(f"{path}:1", row)]


def test_a_row_group_of_all_rows_is_not_read_at_once(tmp_path: Path) -> None:
    draw = random.Random(0)
    texts = [f"{draw.getrandbits(2000):0500x}" for _ in range(40_000)]
    path = tmp_path / "rows.parquet"
    pq.write_table(pa.table({"text": texts}), path, row_group_size=len(texts))
    most = 0
    for number, (_, row) in enumerate(read_rows(path)):
        assert row["text"] == texts[number]
        if number % 1000 == 0:
            most = max(most, pa.total_allocated_bytes())
    assert number == len(texts) - 1
    assert most < path.stat().st_size / 3


def test_csv_cells_may_be_long_but_not_without_end(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = csv.field_size_limit()
    path = tmp_path / "rows.csv"
    path.write_text("id,text\n1," + "a" * 200_000 + "\n", encoding="utf-8")
    ((_, row),) = read_rows(path)
    assert len(row["text"]) == 200_000 > before == csv.field_size_limit()
    monkeypatch.setattr("probekd.tasks.readers.LONGEST_CELL", 1000)
    with pytest.raises(DataError, match=r"rows\.csv:2: .* a cell of more than 1,000 characters; .*unclosed quote"):
        list(read_rows(path))
    assert csv.field_size_limit() == before
