"""Folds that depend on content alone: stratified, variants of a question together, the same whatever the row order."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Sequence

import numpy as np

from probekd.errors import DataError
from probekd.tasks.base import Example, Kind, content_hash
from probekd.tasks.variants import variant_keys


def assign_folds(examples: Sequence[Example], kind: Kind, *, folds: int, seed: int, repeat: int = 0) -> np.ndarray:
    """Fold of each labelled row, (n,) ints.

    Rows that ask the same question, or a variant of it, share a fold. Groups are dealt out class by class in order of their hash, so that
    each fold has its share of every class. Another ``repeat`` deals them anew.

    Raises:
        DataError: too few rows for the folds, or (classification) a class with fewer than two labelled rows.
    """
    if len(examples) < 2 * folds:
        raise DataError(
            f"{len(examples)} labelled rows are too few for {folds} folds (two a fold are the least); "
            "label more rows, raise task.labels, or lower probe.folds"
        )
    if kind == "classification":
        counts = Counter(e.answer for e in examples)
        rare = [label for i, label in enumerate(examples[0].options) if counts[i] < 2]
        if rare:
            index = examples[0].options.index(rare[0])
            raise DataError(
                f"the label {rare[0]!r} has {counts[index]} labelled row(s) in train; every class needs at least two "
                f"to be trained and checked ({len(rare)} such labels); label more rows, or drop the label"
            )
    groups: dict[str, list[int]] = defaultdict(list)
    for i, key in enumerate(variant_keys(examples)):
        groups[key].append(i)
    if len(groups) < folds:
        raise DataError(
            f"the {len(examples)} labelled rows ask only {len(groups)} different questions (variants count once), too few for {folds} folds"
        )
    dealing = ("fold", repeat) if repeat else ("fold",)
    # A group's class is its smallest answer, which does not depend on the order of its rows.
    ordered = sorted(
        groups.items(), key=lambda g: (min(_answer(examples[i]) for i in g[1]), content_hash(seed, *dealing, g[0]))
    )
    result = np.empty(len(examples), dtype=np.int64)
    for number, (_, members) in enumerate(ordered):
        result[members] = number % folds
    return result


def _answer(example: Example) -> int:
    assert example.answer is not None
    return example.answer
