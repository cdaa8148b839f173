"""From the answer as a file writes it to the index of an option: one format for the whole task, never per row.

A format is a function ``(raw, options, where) -> index`` that raises DataError when the answer is not of that format.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from typing import Literal

from probekd.errors import DataError
from probekd.tasks.base import Kind
from probekd.tasks.rows import Draft, nearest

AnswerFormat = Literal["auto", "index", "letter", "text"]
Reader = Callable[[object, Sequence[str], str], int]

# "1.0" is how pandas writes whole numbers of a column that also has gaps.
_WHOLE = re.compile(r"[+-]?\d{1,9}(\.0)?")


def whole_number(raw: object) -> int | None:
    """``raw`` as an integer when it is one, or text or a float of one; else None."""
    if isinstance(raw, str):
        return int(float(raw)) if _WHOLE.fullmatch(raw.strip()) else None
    if isinstance(raw, bool) or not isinstance(raw, int | float):
        return None
    return int(raw) if raw == raw // 1 else None


def index_answer(raw: object, options: Sequence[str], where: str) -> int:
    """A 0-based index."""
    value = whole_number(raw)
    if value is None:
        raise DataError(f"{where}: answer {raw!r} is not a 0-based index")
    if not 0 <= value < len(options):
        hint = "; if the file counts from 1, subtract 1 from every answer" if value == len(options) else ""
        raise DataError(
            f"{where}: answer {value} is outside the {len(options)} options, which are counted from 0{hint}"
        )
    return value


def letter_answer(raw: object, options: Sequence[str], where: str) -> int:
    """A letter, A for the first option."""
    letter = raw.strip().upper() if isinstance(raw, str) else ""
    if not re.fullmatch("[A-J]", letter):
        raise DataError(f"{where}: answer {raw!r} is not a letter from A to J")
    if ord(letter) - ord("A") >= len(options):
        last = chr(ord("A") + len(options) - 1)
        raise DataError(f"{where}: answer {letter} is outside the {len(options)} options, A to {last}")
    return ord(letter) - ord("A")


def text_answer(raw: object, options: Sequence[str], where: str) -> int:
    """The text of one of the row's options."""
    if not isinstance(raw, str) or raw.strip() not in options:
        raise DataError(f"{where}: answer {raw!r} is not one of the row's options; {nearest(raw, options)}")
    return options.index(raw.strip())


def label_answer(raw: object, labels: Sequence[str], where: str) -> int:
    """The name of a label; a whole number names the label that is written so."""
    name = label_name(raw, where)
    if name not in labels:
        raise DataError(
            f"{where}: label {raw!r} is not in the label set (the key labels, else what train has); {nearest(raw, labels)}"
        )
    return labels.index(name)


def label_name(raw: object, where: str) -> str:
    """The label that ``raw`` names; raises DataError when it is neither text nor a whole number."""
    if isinstance(raw, str):
        return raw.strip()
    number = whole_number(raw)
    if number is None:
        raise DataError(f"{where}: label {raw!r} is neither text nor a whole number")
    return str(number)


FORMATS: dict[Kind, dict[str, Reader]] = {
    "multiple_choice": {"text": text_answer, "letter": letter_answer, "index": index_answer},
    "classification": {"text": label_answer, "index": index_answer},
}


def resolve_answers(drafts: Sequence[Draft], kind: Kind, answer_format: AnswerFormat, source: str) -> list[int | None]:
    """Index of the answer of each row, None where it is unlabelled.

    ``auto`` takes the one format that every labelled row fits. Formats that fit and agree on every row are the same.

    Raises:
        DataError: a row that does not fit; under ``auto``, no format fits (the message is that of the format which most
            rows fit), or two fit and disagree.
    """
    labelled = [d for d in drafts if d.answer is not None]
    if answer_format == "auto":
        answers = _auto(labelled, FORMATS[kind], source)
    else:
        reader = FORMATS[kind][answer_format]
        answers = [reader(d.answer, d.options, d.where) for d in labelled]
    found = iter(answers)
    return [None if d.answer is None else next(found) for d in drafts]


def _auto(drafts: Sequence[Draft], formats: dict[str, Reader], source: str) -> list[int]:
    fitting = {name: answers for name, reader in formats.items() if (answers := _read_all(reader, drafts)) is not None}
    if not fitting:
        raise _closest_format_error(drafts, formats)
    first, *others = fitting
    for other in others:
        for draft, a, b in zip(drafts, fitting[first], fitting[other], strict=True):
            if a != b:
                raise DataError(
                    f"{source}: answers can be read as {first} and as {other}: {draft.where} means option {a} or {b} "
                    f"(from 0); set answer_format to {first} or {other}"
                )
    return fitting[first]


def _read_all(reader: Reader, drafts: Sequence[Draft]) -> list[int] | None:
    try:
        return [reader(d.answer, d.options, d.where) for d in drafts]
    except DataError:
        return None


def _closest_format_error(drafts: Sequence[Draft], formats: dict[str, Reader]) -> DataError:
    errors = {name: [e for d in drafts if (e := _misfit(reader, d)) is not None] for name, reader in formats.items()}
    best = min(errors, key=lambda name: len(errors[name]))
    fit = len(drafts) - len(errors[best])
    return DataError(
        f"{errors[best][0]} ({fit} of {len(drafts)} answers read as {best}; answer_format can say otherwise)"
    )


def _misfit(reader: Reader, draft: Draft) -> DataError | None:
    try:
        reader(draft.answer, draft.options, draft.where)
    except DataError as error:
        return error
    return None
