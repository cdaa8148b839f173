"""Write predicted rows as CSV, JSONL or Parquet, a chunk at a time."""

from __future__ import annotations

import csv
import json
import math
from bisect import bisect_left
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from functools import partial
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


def check_texts(where: str, row: Row) -> None:
    """Raise DataError where a cell cannot be written in any format: half of a surrogate pair is no character."""
    for name, value in row.items():
        try:
            _json({name: value}).encode()
        except UnicodeEncodeError:
            raise DataError(
                f"{where}: {name!r}: holds half of a surrogate pair, a broken \\u escape; mend the text, or leave the "
                "column out"
            ) from None


@contextmanager
def _jsonl_writer(path: Path) -> Iterator[Write]:
    with path.open("w", encoding="utf-8", newline="\n") as file:
        yield lambda rows: file.writelines(_json(row) + "\n" for row in rows)


def _json(value: Any) -> str:
    """JSON of one line; dates, times and decimals, which Parquet has and JSON has not, become text, and NaN null."""
    return json.dumps(_finite(value), ensure_ascii=False, allow_nan=False, default=str)


def _finite(value: Any) -> Any:
    """The value with None for each float that JSON has no number for."""
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, dict):
        return {name: _finite(inner) for name, inner in value.items()}
    return [_finite(inner) for inner in value] if isinstance(value, list | tuple) else value


@contextmanager
def _parquet_writer(path: Path, schema: pa.Schema) -> Iterator[Write]:
    with pq.ParquetWriter(path, schema) as writer:
        yield lambda rows: writer.write_table(pa.Table.from_pylist(rows, schema=schema))


def _schema(source: Path, chunk_rows: int) -> pa.Schema:
    """Types of the source's columns: its own (Parquet), or the widest that each chunk's values need.

    Raises:
        DataError: values that Parquet cannot hold in one column; names the first of them.
    """
    if source.suffix.lower() == ".parquet":
        return pq.read_schema(source).remove_metadata()
    types: dict[str, pa.DataType] = {}
    for chunk in chunks(read_rows(source), chunk_rows):
        for name in dict.fromkeys(name for _, row in chunk for name in row):
            types[name] = _converted(partial(_widened, name, types.get(name, pa.null())), name, chunk)
    # A type that a later chunk has widened need not hold every value of an earlier one, as a double does not each integer.
    for chunk in chunks(read_rows(source), chunk_rows):
        for name, kind in types.items():
            _converted(partial(_written, name, kind), name, chunk)
    return pa.schema(types)


def _widened(name: str, before: pa.DataType, values: list[Any]) -> pa.DataType:
    """The type that holds ``values`` and what ``before`` holds."""
    schemas = [pa.schema({name: kind}) for kind in (before, pa.array(values).type)]
    return pa.unify_schemas(schemas, promote_options="permissive").field(0).type


def _written(name: str, kind: pa.DataType, values: list[Any]) -> None:
    """Write values to nowhere."""
    if any(value is not None for value in values):
        pq.write_table(pa.table({name: pa.array(values, kind)}), pa.BufferOutputStream())


def _converted(convert: Callable[[list[Any]], Any], name: str, chunk: Sequence[Located]) -> Any:
    """What ``convert`` makes of a column of some rows; raises DataError naming the first row that it fails at."""
    values = [row.get(name) for _, row in chunk]
    try:
        return convert(values)
    except (pa.ArrowException, OverflowError) as error:
        last = bisect_left(range(len(values)), True, key=lambda last: _fails(convert, values[: last + 1]))
        reason = str(error).splitlines()[0]
        raise DataError(
            f"{chunk[last][0]}: {name!r}: mixes types with the rows before it, or is nothing that Parquet can hold "
            f"({reason}); write .jsonl instead"
        ) from None


def _fails(convert: Callable[[list[Any]], Any], values: list[Any]) -> bool:
    try:
        convert(values)
    except (pa.ArrowException, OverflowError):
        return True
    return False
