"""Rows from a file or the Hub, one dict at a time, each with the place to name when something is wrong with it."""

from __future__ import annotations

import csv
import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from pydantic import model_validator

from probekd.config import Section
from probekd.errors import DataError

Row = dict[str, Any]
Located = tuple[str, Row]
"""``(where, row)``; where is ``file:line`` (JSONL, CSV) or ``file row N`` (Parquet, Hub; N counts from 0)."""

# Characters of a CSV cell. csv's own 131,072 are fewer than a long document has; without an end an unclosed quote would
# take the rest of a file into memory.
LONGEST_CELL = 2**24


class Source(Section):
    """Where the rows of one split come from: ``path``, or ``hub`` and its companions. A plain string is a path."""

    path: Path | None = None
    """A .jsonl, .csv or .parquet file, relative to the task file."""
    hub: str | None = None
    """Id of a dataset on the Hub, such as allenai/ai2_arc."""
    config: str | None = None
    """Configuration of the Hub dataset."""
    split: str | None = None
    """Split of the Hub dataset; None = the name of the split that it is read for."""
    revision: str | None = None
    """Revision of the Hub dataset; a commit hash makes the run repeatable."""

    @model_validator(mode="before")
    @classmethod
    def _path_from_string(cls, value: Any) -> Any:
        return {"path": value} if isinstance(value, str) else value

    @model_validator(mode="after")
    def _one_place(self) -> Source:
        if (self.path is None) == (self.hub is None):
            raise ValueError("give either path (a file) or hub (a dataset id)")
        if self.path is not None and (self.config or self.split or self.revision):
            raise ValueError("config, split and revision belong to hub, not to path")
        return self


def read_source(source: Source, *, split: str, base: Path) -> Iterator[Located]:
    """Rows of ``source``: a file, relative to ``base``, or a Hub dataset whose split is ``split`` unless it says so."""
    if source.path is not None:
        return read_rows(base / source.path)
    return read_hub(source, source.split or split)


def read_rows(path: Path) -> Iterator[Located]:
    """Stream the rows of a .jsonl, .csv or .parquet file.

    Raises:
        DataError: the file cannot be read, or a line of it is not a row; names the physical line (a CSV row that spans
            lines has its first).
    """
    readers = {".jsonl": _read_jsonl, ".csv": _read_csv, ".parquet": _read_parquet}
    reader = readers.get(path.suffix.lower())
    if reader is None:
        raise DataError(f"{path}: cannot tell the format from its name; expected {', '.join(readers)}")
    if not path.exists():
        raise DataError(f"{path}: no such file")
    if not path.is_file():
        raise DataError(f"{path}: is a directory, not a file")
    return reader(path)


def _lines(path: Path) -> Iterator[tuple[int, str]]:
    """Numbered lines, split at line feeds alone: str.splitlines also breaks at U+2028, which JSON text may hold."""
    try:
        with path.open("rb") as file:
            for number, raw in enumerate(file, 1):
                try:
                    yield number, raw.decode("utf-8-sig" if number == 1 else "utf-8")
                except UnicodeDecodeError as error:
                    byte = f"byte 0x{raw[error.start]:02x} at position {error.start}"
                    raise DataError(f"{path}:{number}: not UTF-8 ({byte}); save the file as UTF-8") from None
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error.strerror})") from None


def _read_jsonl(path: Path) -> Iterator[Located]:
    for number, line in _lines(path):
        if not line.strip():
            continue
        where = f"{path}:{number}"
        try:
            row = json.loads(line.rstrip())
        except json.JSONDecodeError as error:
            raise DataError(
                f"{where}: not valid JSON: {error.msg} at column {error.colno}; each line is one object"
            ) from None
        except (RecursionError, ValueError) as error:
            raise DataError(f"{where}: not usable JSON: {error}") from None
        if not isinstance(row, dict):
            raise DataError(f"{where}: expected a JSON object, found {type(row).__name__}; each line is one object")
        yield where, row


def _read_csv(path: Path) -> Iterator[Located]:
    reader = csv.reader((line for _, line in _lines(path)), strict=True)
    header: list[str] | None = None
    while True:
        line = reader.line_num + 1
        try:
            with _long_cells():
                cells = next(reader, None)
        except csv.Error as error:
            fault = f"a cell of more than {LONGEST_CELL:,} characters" if "field larger" in str(error) else str(error)
            raise DataError(f"{path}:{line}: not valid CSV: {fault}; look for an unclosed quote") from None
        if cells is None:
            break
        if not cells:
            continue
        if header is None:
            header = _csv_header(cells, f"{path}:{line}")
            continue
        if len(cells) != len(header):
            found = f"{len(cells)} cell(s), but the header has {len(header)}"
            raise DataError(f"{path}:{line}: {found}; quote texts that hold a comma or a line end")
        yield f"{path}:{line}", dict(zip(header, cells, strict=True))
    if header is None:
        raise DataError(f"{path}: the file is empty; its first line must name the columns")


@contextmanager
def _long_cells() -> Iterator[None]:
    """Let csv read cells of ``LONGEST_CELL``; its limit is one for the whole process, and others may count on theirs."""
    before = csv.field_size_limit(LONGEST_CELL)
    try:
        yield
    finally:
        csv.field_size_limit(before)


def _csv_header(cells: list[str], where: str) -> list[str]:
    repeated = next((name for name in cells if cells.count(name) > 1), None)
    if repeated is not None:
        raise DataError(f"{where}: the column {repeated!r} occurs twice in the header")
    return cells


def _read_parquet(path: Path) -> Iterator[Located]:
    import pyarrow as pa
    import pyarrow.parquet as pq

    number = 0
    try:
        # Left to itself it reads a row group whole, and a writer may have made one of all rows.
        with pq.ParquetFile(path, buffer_size=2**20, pre_buffer=False) as file:
            for batch in file.iter_batches(batch_size=1024):
                for row in batch.to_pylist():
                    yield f"{path} row {number}", row
                    number += 1
    except (pa.ArrowException, OSError) as error:
        raise DataError(f"{path}: not a readable Parquet file ({error})") from None


def read_hub(source: Source, split: str) -> Iterator[Located]:
    """Rows of one split of a Hub dataset; a ClassLabel column gives its names, and None where it is unlabelled (-1).

    Raises:
        DataError: the dataset cannot be fetched, or has no such configuration or split.
    """
    import datasets

    try:
        rows = datasets.load_dataset(source.hub, source.config, split=split, revision=source.revision)
    except (OSError, ValueError, RuntimeError, datasets.exceptions.DatasetsError) as error:
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise DataError(f"the Hub dataset {source.hub!r}, split {split!r}, cannot be loaded: {reason}") from None
    names = {
        column: feature.names for column, feature in rows.features.items() if isinstance(feature, datasets.ClassLabel)
    }
    for number, row in enumerate(rows):
        decoded = {column: _label_name(row[column], labels) for column, labels in names.items()}
        yield f"{source.hub} [{split}] row {number}", {**row, **decoded}


def _label_name(index: int | None, names: list[str]) -> str | None:
    return None if index is None or index < 0 else names[index]
