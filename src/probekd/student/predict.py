"""Predict a file: rows in, the same rows with the student's prediction out, in constant memory."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa

from probekd.errors import DataError
from probekd.files import replacing
from probekd.progress import Progress, Silent, working
from probekd.student.backends import open_student
from probekd.student.model import StudentInfo
from probekd.student.onnx import Backend
from probekd.student.tables import check_texts, chunks, table_writer
from probekd.tasks.base import Example, check_options
from probekd.tasks.readers import Row, read_rows
from probekd.tasks.rows import options_of, text_of

QUESTION_COLUMNS = ("question", "text", "sentence", "input")
OPTION_COLUMNS = ("choices", "options")
SUFFIXES = (".csv", ".jsonl", ".parquet")
# The columns are looked up in the first row.
IN_EVERY_ROW = "the first row has it and every row needs it, so add it to this one"
ADDED = pa.schema(
    {
        "prediction": pa.string(),
        "prediction_index": pa.int64(),
        "confidence": pa.float64(),
        "probs": pa.list_(pa.float64()),
    }
)


def predict_file(
    student_dir: str | Path,
    input_path: Path,
    output_path: Path,
    *,
    question: str | None = None,
    options: str | Sequence[str] | None = None,
    backend: Backend = "torch",
    batch_rows: int = 1024,
    overwrite: bool = False,
    trust_remote_code: bool = False,
    progress: Progress | None = None,
) -> int:
    """Predict every row of a .csv, .jsonl or .parquet file; the output may be of another of these formats.

    All columns are kept. Added are ``prediction`` (the label's name, or the option's text), ``prediction_index`` (from
    0), ``confidence`` (its probability) and ``probs`` (a list over the options; JSON text in CSV). The input is read
    twice: all of it is checked before the first row is predicted; for Parquet from another format it is read twice more,
    for its types. The output appears when it is complete.

    Args:
        student_dir: A student directory.
        input_path: Rows.
        output_path: Where the rows go.
        question: Column of the text; None = the first of question, text, sentence, input that the first row has.
        options: Multiple choice: a column with a list of texts (in CSV, a JSON list), or the columns that hold one
            option each, in which empty cells at the end mean fewer options; None = choices or options.
        backend: What answers: PyTorch, or one of the student's ONNX files.
        batch_rows: Rows in memory at a time.
        overwrite: Replace an output file that exists.
        trust_remote_code: Run Python code that ships with the student's checkpoint.
        progress: Told of the rows predicted.

    Returns:
        The number of rows.

    Raises:
        DataError: a file, column or row that cannot be used.
        ModelError: not a student directory, or one without the ONNX file that is asked for.
    """
    plan = plan_file(
        StudentInfo.load(Path(student_dir)),
        input_path,
        output_path,
        ADDED,
        question=question,
        options=options,
        overwrite=overwrite,
    )
    student = open_student(student_dir, backend, trust_remote_code=trust_remote_code)

    def answer(rows: Sequence[Example]) -> list[Row]:
        return [prediction(e, p) for e, p in zip(rows, student.predict_proba(rows), strict=True)]

    plan.write(answer, batch_rows=batch_rows, progress=progress)
    return plan.rows


@dataclass(frozen=True, kw_only=True)
class FilePlan:
    """A file whose rows are all known to be usable, and where they go with more columns.

    Attributes:
        input_path: Rows.
        output_path: Where the rows go.
        to_example: From a row and its place to an Example, whose id is the place.
        rows: Their number.
        columns: Their columns.
        added: The columns that come after them.
    """

    input_path: Path
    output_path: Path
    to_example: Callable[[str, Row], Example]
    rows: int
    columns: tuple[str, ...]
    added: pa.Schema

    def examples(self) -> Iterator[Example]:
        """The rows, one at a time."""
        return (self.to_example(where, row) for where, row in read_rows(self.input_path))

    def write(
        self, answer: Callable[[Sequence[Example]], Sequence[Row]], *, batch_rows: int, progress: Progress | None
    ) -> None:
        """Write the rows with what ``answer`` adds to each, a batch at a time; the output appears when it is complete."""
        with (
            working(progress or Silent(), "predict", self.rows, "rows") as progress,
            replacing(self.output_path) as unfinished,
            table_writer(unfinished, self.output_path, self.input_path, self.columns, self.added, batch_rows) as write,
        ):
            for chunk in chunks(read_rows(self.input_path), batch_rows):
                answers = answer([self.to_example(where, row) for where, row in chunk])
                write([{**row, **more} for (_, row), more in zip(chunk, answers, strict=True)])
                progress.advance(len(chunk))


def plan_file(
    info: StudentInfo,
    input_path: Path,
    output_path: Path,
    added: pa.Schema,
    *,
    question: str | None,
    options: str | Sequence[str] | None,
    overwrite: bool,
    subject: bool = False,
) -> FilePlan:
    """Read all rows once, before models are loaded; see ``predict_file``, and of ``subject`` ``row_reader``.

    Raises:
        DataError: a file, column or row that cannot be used.
    """
    if output_path.suffix.lower() not in SUFFIXES:
        raise DataError(f"{output_path}: cannot tell the format from its name; expected {', '.join(SUFFIXES)}")
    if output_path.exists() and not overwrite:
        raise DataError(f"{output_path}: exists already; give another name or ask to overwrite it")
    if output_path.resolve() == input_path.resolve():
        raise DataError(f"{output_path}: is the input; give another name")
    to_example = row_reader(info, input_path, question, options, subject=subject)
    total, columns = _check(input_path, to_example, added.names)
    return FilePlan(
        input_path=input_path, output_path=output_path, to_example=to_example, rows=total, columns=columns, added=added
    )


def read_examples(
    info: StudentInfo,
    path: Path,
    question: str | None = None,
    options: str | Sequence[str] | None = None,
    *,
    subject: bool = False,
) -> list[Example]:
    """All rows of a file as ``predict_file`` reads them; an Example's id is the place of its row."""
    to_example = row_reader(info, path, question, options, subject=subject)
    return [to_example(where, row) for where, row in read_rows(path)]


def prediction(example: Example, probs: np.ndarray) -> Row:
    """The columns that say what was predicted of a row."""
    best = int(probs.argmax())
    return {
        "prediction": example.options[best],
        "prediction_index": best,
        "confidence": float(probs[best]),
        "probs": probs.tolist(),
    }


def row_reader(
    info: StudentInfo,
    path: Path,
    question: str | None,
    options: str | Sequence[str] | None,
    *,
    subject: bool = False,
) -> Callable[[str, Row], Example]:
    """How a row becomes an Example; the columns are looked up once, in the first row.

    Args:
        info: Of the student.
        path: The file.
        question: Its column.
        options: Its column or columns.
        subject: Whether another reader of the rows is shown their subject; the student says by itself whether it is.
    """
    where, first = next(read_rows(path), (str(path), None))
    if first is None:
        raise DataError(f"{path}: has no rows")
    text_column = _existing([question] if question else QUESTION_COLUMNS, first, where, "--question")
    about = _subjects(info, first, where) if subject or info.shows_subject else lambda where, row: ""
    if info.kind == "classification":
        if options is not None:
            raise DataError(f"{path}: the student chooses among its own {len(info.labels)} labels; leave --options out")
        return lambda where, row: Example(
            id=where,
            question=text_of(row, text_column, where, IN_EVERY_ROW),
            options=info.labels,
            subject=about(where, row),
        )
    if options is None or isinstance(options, str):
        columns: str | Sequence[str] = _existing([options] if options else OPTION_COLUMNS, first, where, "--options")
    else:
        columns = [_existing([name], first, where, "--options") for name in options]

    def read(where: str, row: Row) -> Example:
        choices = options_of(row, columns, where, IN_EVERY_ROW)
        example = Example(
            id=where,
            question=text_of(row, text_column, where, IN_EVERY_ROW),
            options=choices,
            subject=about(where, row),
        )
        check_options(example, where)
        return example

    return read


def _subjects(info: StudentInfo, first: Row, where: str) -> Callable[[str, Row], str]:
    """How a row's subject is found, without which its prompt would be another than those that were learned from."""
    if "subject" not in first:
        raise DataError(
            f"{where}: no column 'subject'; prompts of the task {info.task} show it, so add the column, with the subjects that "
            "the task has"
        )
    return lambda where, row: text_of(row, "subject", where, IN_EVERY_ROW)


def _existing(names: Sequence[str], row: Row, where: str, option: str) -> str:
    """The first of ``names`` that the row has."""
    for name in names:
        if name in row:
            return name
    wanted = " or ".join(map(repr, names))
    raise DataError(f"{where}: no column {wanted}; found {', '.join(map(repr, row))}; name the right one with {option}")


def _check(path: Path, to_example: Callable[[str, Row], Example], added: Sequence[str]) -> tuple[int, tuple[str, ...]]:
    """Read all rows once: their number and columns."""
    columns: dict[str, None] = {}
    total = 0
    for where, row in read_rows(path):
        to_example(where, row)
        check_texts(where, row)
        columns |= dict.fromkeys(row)
        total += 1
    if taken := [name for name in added if name in columns]:
        raise DataError(f"{path}: has a column {taken[0]!r} already; rename it, it would be replaced")
    return total, tuple(columns)
