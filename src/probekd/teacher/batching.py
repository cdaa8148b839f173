"""Which rows are computed together: pure functions over lengths."""

from __future__ import annotations

from collections.abc import Iterator, Sequence


def token_batches(lengths: Sequence[int], budget: int) -> Iterator[list[int]]:
    """Indices in batches of similar length whose padded size stays within ``budget`` tokens.

    Longest first: running out of memory and the slowest batch come at the start, so the time left is never
    underestimated (lm-eval ``Collator``). A sequence longer than the budget is a batch of its own.
    """
    batch: list[int] = []
    longest = 0
    for index in sorted(range(len(lengths)), key=lambda i: (-lengths[i], i)):
        if batch and longest * (len(batch) + 1) > budget:
            yield batch
            batch = []
        if not batch:
            longest = lengths[index]
        batch.append(index)
    if batch:
        yield batch


def shard_slices(num_rows: int, row_bytes: int, shard_bytes: int) -> list[range]:
    """Row ranges of at most ``shard_bytes`` each, at least one row a shard."""
    rows = max(1, shard_bytes // max(1, row_bytes))
    return [range(start, min(start + rows, num_rows)) for start in range(0, num_rows, rows)]
