"""The rows that are read, and what is read of them."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

from probekd.config import Layout, Position
from probekd.extraction import default_positions
from probekd.prompts import Prompt, PromptEncoder, layouts_of, orders_read
from probekd.tasks.base import Example, Task, nested_order

# Rows with the most bytes of text, among which the longest prompt is looked for.
CANDIDATES = 200


@dataclass(frozen=True, kw_only=True)
class Sheet:
    """The rows in one layout.

    Attributes:
        layout: How they are shown.
        rows: The rows.
        prompts: One for each row.
        positions: Positions that are read.
        orders: m, the most option orders that a row is read in.
        labels: Label tokens of each row; None = an encoder, or a layout without labels.
    """

    layout: Layout
    rows: tuple[Example, ...]
    prompts: tuple[Prompt, ...]
    positions: tuple[Position, ...]
    orders: int
    labels: tuple[tuple[int, ...], ...] | None

    @property
    def max_options(self) -> int:
        """The most options that a row has."""
        return max(len(row.options) for row in self.rows)


def choose_rows(task: Task, number: int) -> tuple[list[Example], list[Example]]:
    """A sample of a task's rows, answered ones where there are any, and the rows that may have the longest prompt."""
    rows = task.rows()
    answered = [e for e in rows if e.answer is not None]
    size = {e.id: len("".join((e.question, *e.options)).encode()) for e in rows}
    longest = sorted(rows, key=lambda e: (-size[e.id], e.id))[:CANDIDATES]
    return nested_order(answered or rows, seed=0)[:number], longest


def tokens_of(encoder: PromptEncoder, rows: Iterable[Example], layouts: Sequence[Layout]) -> dict[str, int]:
    """Tokens of each row's longest sequence, by id."""
    return {e.id: max(len(s.tokens) for layout in layouts for s in encoder.encode(e, layout).sequences) for e in rows}


def sheets_of(encoder: PromptEncoder, rows: Sequence[Example]) -> tuple[Sheet, ...]:
    """The rows in every layout of their task; their label tokens are not looked for yet."""
    task = encoder.task
    return tuple(
        Sheet(
            layout=layout,
            rows=tuple(rows),
            prompts=tuple(encoder.encode(e, layout) for e in rows),
            positions=default_positions(task, layout),
            orders=orders_read(task.kind, layout, task.prompt),
            labels=None,
        )
        for layout in layouts_of(task.kind, task.prompt)
    )


def with_labels(encoder: PromptEncoder, sheet: Sheet) -> Sheet:
    """The sheet with its rows' label tokens, where its layout has labels and its teacher says them."""
    if sheet.layout == "branched" or encoder.encoder:
        return sheet
    return replace(sheet, labels=tuple(tuple(encoder.label_tokens(e)) for e in sheet.rows))
