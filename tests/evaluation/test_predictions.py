from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from probekd.errors import DataError
from probekd.evaluation.predictions import Predictions, evaluate, scored_splits, write_predictions
from probekd.metrics import score
from probekd.tasks.base import Example, Task


def row(row_id: str, k: int, answer: int | None) -> Example:
    return Example(id=row_id, question=f"{row_id}?", options=tuple("abcde"[:k]), answer=answer)


TEST = (row("a", 3, 2), row("b", 5, None), row("c", 4, 0))
PROBS = [np.array([0.1, 0.2, 0.7]), np.array([0.2, 0.2, 0.2, 0.3, 0.1]), np.array([0.25, 0.5, 0.125, 0.125])]


@pytest.fixture
def task() -> Task:
    splits = {
        "train": (row("t", 3, 1),),
        "validation": (row("v", 3, None),),
        "test": TEST,
        "unlabelled": (row("u", 3, None),),
    }
    return Task(name="made", kind="multiple_choice", splits=splits)


def predictions(who: str = "student", split: str = "test") -> Predictions:
    return Predictions(who=who, split=split, examples=TEST, probs=PROBS)


class Echo:
    """A student that says of each row what it was told to."""

    def predict_proba(self, rows: list[Example]) -> list[np.ndarray]:
        said = dict(zip((e.id for e in TEST), PROBS, strict=True))
        return [said.get(e.id, np.full(len(e.options), 1 / len(e.options))) for e in rows]


def test_file_has_the_columns_and_types_of_the_contract(tmp_path: Path) -> None:
    path = tmp_path / "predictions.parquet"
    write_predictions(path, [predictions("probe"), predictions("student", "validation")])
    table = pq.read_table(path)
    assert table.schema.names == ["id", "split", "who", "probs", "answer"]
    assert table.schema.field("probs").type == pa.list_(pa.float64())
    assert pa.types.is_integer(table.schema.field("answer").type)
    expected = [
        {"id": e.id, "split": split, "who": who, "probs": p.tolist(), "answer": -1 if e.answer is None else e.answer}
        for who, split in (("probe", "test"), ("student", "validation"))
        for e, p in zip(TEST, PROBS, strict=True)
    ]
    assert table.to_pylist() == expected
    assert [r["answer"] for r in table.to_pylist()[:3]] == [2, -1, 0]


def test_no_predictions_make_an_empty_table_with_the_same_columns(tmp_path: Path) -> None:
    write_predictions(tmp_path / "p.parquet", [])
    table = pq.read_table(tmp_path / "p.parquet")
    assert (table.num_rows, table.schema.names) == (0, ["id", "split", "who", "probs", "answer"])


def test_a_failed_write_leaves_the_old_file_and_nothing_else(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "predictions.parquet"
    write_predictions(path, [predictions()])
    before = path.read_bytes()

    def torn(table: pa.Table, where: Path) -> None:
        Path(where).write_bytes(b"half")
        raise OSError("disk full")

    monkeypatch.setattr(pq, "write_table", torn)
    with pytest.raises(OSError, match="disk full"):
        write_predictions(path, [predictions("probe")])
    assert path.read_bytes() == before
    assert [p.name for p in tmp_path.iterdir()] == [path.name]


def test_a_predictor_must_speak_of_every_row(tmp_path: Path) -> None:
    short = Predictions(who="student", split="test", examples=TEST, probs=PROBS[:2])
    with pytest.raises(ValueError, match="shorter"):
        write_predictions(tmp_path / "p.parquet", [short])
    assert not list(tmp_path.iterdir())


def test_scores_leave_out_unlabelled_rows() -> None:
    assert predictions().labelled()[1] == [2, 0]
    assert predictions().scores() == score([PROBS[0], PROBS[2]], [2, 0])
    assert (predictions().scores()["n"], predictions().scores()["accuracy"]) == (2, 0.5)


def test_a_split_without_labels_cannot_be_scored() -> None:
    blind = Predictions(who="probe", split="validation", examples=TEST[1:2], probs=PROBS[1:2])
    with pytest.raises(DataError, match="split 'validation' has no labelled row"):
        blind.scores()


def test_splits_without_labels_or_rows_are_passed_over(task: Task) -> None:
    assert scored_splits(task, ("test", "validation", "absent", "train")) == ["test", "train"]


@pytest.mark.parametrize("wanted", [("validation",), ("absent", "unlabelled"), ()])
def test_nothing_to_score_is_an_error_that_names_the_splits(wanted: tuple[str, ...], task: Task) -> None:
    with pytest.raises(DataError, match=r"task made: none of the splits \[.*\] has labelled rows") as caught:
        scored_splits(task, wanted)
    assert all(split in str(caught.value) for split in wanted)
    assert "evaluate.splits" in str(caught.value)


def test_a_student_is_scored_by_split(task: Task) -> None:
    found = evaluate(Echo(), task, splits=("test", "validation", "train"))  # type: ignore[arg-type]
    assert list(found) == ["test", "train"]
    assert found["test"] == predictions().scores()
    assert found["train"]["nll"] == pytest.approx(np.log(3))


def test_a_student_without_a_scored_split_is_an_error(task: Task) -> None:
    with pytest.raises(DataError, match=r"evaluate\.splits"):
        evaluate(Echo(), task, splits=("validation",))  # type: ignore[arg-type]
