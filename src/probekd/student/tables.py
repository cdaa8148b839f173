"""Write predicted rows as CSV, JSONL or Parquet, a chunk at a time."""

from __future__ import annotations

import csv
import json
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from itertools import islice
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from probekd.errors import DataError
from probekd.tasks.readers import Located, Row, read_rows

Write = Callable[[list[Row]], None]
"""Takes the next rows; a row may lack columns."""


def chunks(rows: Iterable[Located], size: int) -> Iterator[list[Located]]:
    """Lists of at most ``size`` rows."""
    iterator = iter(rows)
    while chunk := list(islice(iterator, size)):
        yield chunk


def table_writer(
    path: Path, destination: Path, source: Path, columns: Sequence[str], added: pa.Schema, chunk_rows: int
) -> AbstractContextManager[Write]:
    """A writer to ``path`` in the format that ``destination`` is named for.

    Args:
        path: File to write.
        destination: Its final name, which gives the format.
        source: File that the rows come from; its types are kept in Parquet.
        columns: Columns of the source.
        added: Columns that come after them.
        chunk_rows: Rows held in memory while the source's types are found.

    Raises:
        DataError: a format that is not known, or values that do not fit one column type (Parquet).
    """
    suffix = destination.suffix.lower()
    if suffix == ".csv":
        return _csv_writer(path, [*columns, *added.names])
    if suffix == ".jsonl":
        return _jsonl_writer(path)
    return _parquet_writer(path, pa.schema([*_schema(source, chunk_rows), *added]))


@contextmanager
def _csv_writer(path: Path, columns: Sequence[str]) -> Iterator[Write]:
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, columns, restval="")
        writer.writeheader()
        yield lambda rows: writer.writerows({name: _cell(value) for name, value in row.items()} for row in rows)


def _cell(value: Any) -> Any:
    return _json(value) if isinstance(value, list | dict) else value


@contextmanager
def _jsonl_writer(path: Path) -> Iterator[Write]:
    with path.open("w", encoding="utf-8", newline="\n") as file:
        yield lambda rows: file.writelines(_json(row) + "\n" for row in rows)


def _json(value: Any) -> str:
    """JSON of one line; dates, times and decimals, which Parquet has and JSON has not, become text."""
    return json.dumps(value, ensure_ascii=False, default=str)


@contextmanager
def _parquet_writer(path: Path, schema: pa.Schema) -> Iterator[Write]:
    with pq.ParquetWriter(path, schema) as writer:
        yield lambda rows: writer.write_table(pa.Table.from_pylist(rows, schema=schema))


def _schema(source: Path, chunk_rows: int) -> pa.Schema:
    """Types of the source's columns: its own (Parquet), or the widest that each chunk's values need."""
    if source.suffix.lower() == ".parquet":
        return pq.read_schema(source).remove_metadata()
    schema = pa.schema([])
    for chunk in chunks(read_rows(source), chunk_rows):
        try:
            found = pa.schema(list(pa.array([row for _, row in chunk]).type))
            schema = pa.unify_schemas([schema, found], promote_options="permissive")
        except pa.ArrowException as error:
            raise DataError(
                f"{chunk[0][0]} to {chunk[-1][0]}: a column mixes types, which Parquet cannot hold ({error}); "
                "write .jsonl instead"
            ) from None
    return schema
