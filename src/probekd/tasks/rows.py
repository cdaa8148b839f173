"""Typed fields of a row; whatever is missing or of the wrong kind is a DataError that names the place and the field."""

from __future__ import annotations

import difflib
import json
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from probekd.errors import DataError
from probekd.tasks.readers import Row


@dataclass(frozen=True, slots=True, kw_only=True)
class Draft:
    """A row whose answer is still as written in the file (None = unlabelled)."""

    where: str
    id: str
    question: str
    options: tuple[str, ...]
    answer: object
    subject: str = ""


def nearest(name: object, known: Iterable[str]) -> str:
    """A hint for an unknown name: the closest known one, else the names there are (the first ten)."""
    names = list(known)
    close = difflib.get_close_matches(str(name), names, n=1, cutoff=0.6)
    if close:
        return f"did you mean {close[0]!r}?"
    return f"there are {', '.join(map(repr, names[:10]))}{f' and {len(names) - 10} more' if len(names) > 10 else ''}"


# How a task file's reader mends a column that is not there.
MAP_IT = "map it under `columns`"


def missing_column(column: str, columns: Iterable[str], where: str, mend: str = MAP_IT) -> DataError:
    """The error for a column that a row or file does not have; ``mend`` says what to do about it."""
    found = list(columns)
    close = difflib.get_close_matches(column, found, n=1, cutoff=0.5)
    hint = f" (did you mean {close[0]!r}?)" if close else ""
    names = ", ".join(map(repr, found)) or "none"
    return DataError(f"{where}: no column {column!r}{hint}; found {names}; {mend}")


def as_text(value: object, field: str, where: str) -> str:
    """``value`` without outer white space, which no row means and every tokenizer sees.

    Raises:
        DataError: not a string, empty, or not encodable (half of a surrogate pair, from a broken JSON escape).
    """
    if not isinstance(value, str):
        raise DataError(f"{where}: {field}: expected text, found {value!r}; turn it into text first")
    text = value.strip()
    if not text:
        raise DataError(f"{where}: {field} is empty")
    if any("\ud800" <= character <= "\udfff" for character in text):
        raise DataError(f"{where}: {field}: holds half of a surrogate pair, a broken \\u escape")
    return text


def text_of(row: Row, column: str, where: str, mend: str = MAP_IT) -> str:
    """The text in ``column``; raises DataError when it is absent (see ``missing_column``), empty or not text."""
    if column not in row:
        raise missing_column(column, row, where, mend)
    return as_text(row[column], column, where)


def options_of(row: Row, columns: str | Sequence[str], where: str, mend: str = MAP_IT) -> tuple[str, ...]:
    """Options from one column that holds a list (or a JSON list as text), or from one column an option.

    With one column an option, empty cells at the end mean fewer options; a gap would move the options behind it away
    from their letters, so it is an error.
    """
    if isinstance(columns, str):
        if columns not in row:
            raise missing_column(columns, row, where, mend)
        values = _as_list(row[columns], columns, where)
        return tuple(as_text(value, f"{columns}[{i}]", where) for i, value in enumerate(values))
    absent = next((column for column in columns if column not in row), None)
    if absent is not None:
        raise missing_column(absent, row, where, mend)
    used = max((i + 1 for i, column in enumerate(columns) if not is_empty(row[column])), default=0)
    return tuple(as_text(row[column], column, where) for column in columns[:used])


def _as_list(value: object, column: str, where: str) -> list[object]:
    parsed: object = value
    if isinstance(value, str):
        try:
            parsed = json.loads(value)
        except (RecursionError, ValueError):
            parsed = None
    if not isinstance(parsed, list):
        raise DataError(
            f'{where}: {column}: expected a list of texts (in CSV a JSON list, ["yes", "no"]), found {value!r}'
        )
    return parsed


def id_of(row: Row, column: str, where: str) -> str:
    """The row's id as text; raises DataError when it is neither text nor a whole number."""
    value = row[column]
    if isinstance(value, int) and not isinstance(value, bool):
        return str(value)
    return as_text(value, column, where)


def is_empty(value: object) -> bool:
    """Whether a cell holds nothing: None, NaN (how pandas stores a gap), or blank text."""
    return (
        value is None
        or (isinstance(value, float) and math.isnan(value))
        or (isinstance(value, str) and not value.strip())
    )
