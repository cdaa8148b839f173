"""Rows as the student reads them: token sequences, padded and batched by length."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from probekd.errors import DataError
from probekd.tasks.base import Example, Kind

TokenSequence = Mapping[str, list[int]]
"""One tokenised text: the model's input names (input_ids, attention_mask, ...) to integers of equal count."""


class Said(NamedTuple):
    """A token that a decoder would have to say to choose an option.

    Attributes:
        option: Index of the option.
        sequence: Index of the sequence in which it would say so.
        at: The token of the sequence after which it would.
        token: Its id.
        weight: What its log-probability counts for.
    """

    option: int
    sequence: int
    at: int
    token: int
    weight: float


class Span(NamedTuple):
    """Tokens [start, stop) of a sequence, whose mean state is read."""

    sequence: int
    start: int
    stop: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Encoded:
    """One row in tokens.

    Attributes:
        sequences: One for each option (multiple_choice), or a single one (classification).
        options: How many options the row has.
        cut: Whether a text was longer than the limit.
        said: What says each option, for a decoder that answers in words; else empty.
        spans: Where a cut student reads the row, or each of its options; else empty.
    """

    sequences: tuple[TokenSequence, ...]
    options: int
    cut: bool
    said: tuple[Said, ...] = ()
    spans: tuple[Span, ...] = ()

    @property
    def tokens(self) -> int:
        """Tokens of the longest sequence."""
        return max(len(sequence["input_ids"]) for sequence in self.sequences)


def encode(tokenizer: Any, examples: Sequence[Example], kind: Kind, max_length: int) -> list[Encoded]:
    """Tokenise rows: the question alone (classification), or the pair (question, option) for each option.

    A text longer than ``max_length`` tokens loses the end of its question, never of its option.

    Raises:
        DataError: an option leaves no room for the question.
    """
    if not examples:
        return []
    widths = [len(e.options) if kind == "multiple_choice" else 1 for e in examples]
    questions = [e.question for e, width in zip(examples, widths, strict=True) for _ in range(width)]
    options = [o for e in examples for o in e.options] if kind == "multiple_choice" else None
    columns = dict(tokenizer(questions, options))
    long = [i for i, ids in enumerate(columns["input_ids"]) if len(ids) > max_length]
    if long:
        owners = np.repeat(np.arange(len(examples)), widths)
        if options is not None:
            for i in long:
                _check_option(tokenizer, examples[owners[i]].id, options[i], max_length)
        cut = tokenizer(
            [questions[i] for i in long],
            [options[i] for i in long] if options is not None else None,
            truncation="only_first",
            max_length=max_length,
        )
        for name, values in columns.items():
            for i, value in zip(long, cut[name], strict=True):
                values[i] = value
    was_cut = set(long)
    rows, start = [], 0
    for example, width in zip(examples, widths, strict=True):
        span = range(start, start + width)
        sequences = tuple({name: values[i] for name, values in columns.items()} for i in span)
        rows.append(Encoded(sequences=sequences, options=len(example.options), cut=not was_cut.isdisjoint(span)))
        start += width
    return rows


def _check_option(tokenizer: Any, row: str, option: str, max_length: int) -> None:
    tokens = len(tokenizer(option, add_special_tokens=False)["input_ids"])
    if tokens + tokenizer.num_special_tokens_to_add(pair=True) >= max_length:
        raise DataError(
            f"row {row!r}: the option {option[:40]!r}... has {tokens} tokens, which leaves no room for the question in "
            f"{max_length}; raise student.max_length"
        )


def pad(tokenizer: Any, sequences: Sequence[TokenSequence]) -> dict[str, Tensor]:
    """Sequences as tensors of shape (n, longest)."""
    return dict(tokenizer.pad([dict(s) for s in sequences], return_tensors="pt"))


def length_batches(lengths: Sequence[int], batch_size: int) -> Iterator[list[int]]:
    """Indices in batches of similar length, longest first: a batch too large for the memory fails at once."""
    order = sorted(range(len(lengths)), key=lambda i: -lengths[i])
    for start in range(0, len(order), batch_size):
        yield order[start : start + batch_size]


def row_batches(rows: Sequence[Encoded], batch_size: int) -> Iterator[list[int]]:
    """Indices of rows with as many options as each other, in batches of similar length, longest first.

    Args:
        rows: Rows in tokens.
        batch_size: Token sequences a batch; a row has at least one batch to itself, however many it has.
    """
    shapes = {(row.options, len(row.sequences)) for row in rows}
    for options, width in sorted(shapes, reverse=True):
        alike = [i for i, row in enumerate(rows) if (row.options, len(row.sequences)) == (options, width)]
        for batch in length_batches([rows[i].tokens for i in alike], max(1, batch_size // width)):
            yield [alike[i] for i in batch]


def map_sequences(
    forward: Callable[[dict[str, Tensor]], Tensor],
    tokenizer: Any,
    sequences: Sequence[TokenSequence],
    *,
    batch_size: int,
    device: torch.device,
) -> np.ndarray:
    """Apply ``forward`` ((b, tokens) tensors -> (b, d)) to all sequences; float32 of shape (n, d) in their order."""
    parts: list[np.ndarray] = []
    order: list[int] = []
    with torch.inference_mode():
        for indices in length_batches([len(s["input_ids"]) for s in sequences], batch_size):
            batch = {name: t.to(device) for name, t in pad(tokenizer, [sequences[i] for i in indices]).items()}
            parts.append(forward(batch).float().cpu().numpy())
            order += indices
    result = np.concatenate(parts)
    result[order] = result.copy()
    return result
