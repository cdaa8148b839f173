"""The orders in which a row's options are shown, when a row is read in more than its own."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import count, islice
from math import factorial

from probekd.tasks.base import content_hash

Order = tuple[int, ...]


def option_orders(row_id: str, options: int, number: int) -> tuple[Order, ...]:
    """``min(number, options!)`` distinct orders of a row's options; the first is the row's own.

    An order names, for each shown place, the option that stands there. The orders come in blocks of ``options``, the
    rotations of one base, so every option stands once at every place in a whole block, and at most once in the last,
    unfinished one: over all orders the counts of an option at two places differ by at most one. Bases and rotations
    follow a hash of the row's id, so they depend on nothing else, and a smaller ``number`` gives the first of the
    orders that a larger one gives.
    """
    return tuple(islice(_orders(row_id, options), min(number, factorial(options))))


def _orders(row_id: str, options: int) -> Iterator[Order]:
    own = tuple(range(options))
    yield own
    for block, base in enumerate(_bases(row_id, options)):
        rotations = (base[s:] + base[:s] for s in _by_hash(own, row_id, block, "rotation"))
        yield from (order for order in rotations if order != own)


def _bases(row_id: str, options: int) -> Iterator[Order]:
    """The row's own order, then hashed ones: every cyclic order once (option 0 is first, so no two are rotations)."""
    own = tuple(range(options))
    yield own
    seen = {own}
    for draw in count():
        base = own[:1] + _by_hash(own[1:], row_id, draw, "base")
        if base not in seen:
            seen.add(base)
            yield base


def _by_hash(items: Order, *key: object) -> Order:
    return tuple(sorted(items, key=lambda i: content_hash(*key, i)))
