"""Folds that depend on content alone: stratified, variants of a question together, the same whatever the row order."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence

import numpy as np

from probekd.errors import DataError
from probekd.tasks.base import Example, Kind, content_hash
from probekd.tasks.variants import variant_keys

# Fold of the rows that train every model and are held out by none.
UNCHECKED = -1


def assign_folds(examples: Sequence[Example], kind: Kind, *, folds: int, seed: int, repeat: int = 0) -> np.ndarray:
    """Fold of each labelled row, (n,) ints; -1 for a row that cannot be checked.

    Rows that ask the same question, or a variant of it, share a fold. Groups are dealt out class by class in order of their hash, so that
    each fold has its share of every class. Another ``repeat`` deals them anew.

    A model that leaves out the only labelled row of a class has never seen the class, so its word on the row says nothing
    of what it would know with the row. Such rows (or groups, when a class has one group) are held out by no fold.

    Raises:
        DataError: too few rows for the folds.
    """
    groups: dict[str, list[int]] = defaultdict(list)
    for i, key in enumerate(variant_keys(examples)):
        groups[key].append(i)
    answers = [_answer(e) for e in examples]
    checked = _checked(groups, answers) if kind == "classification" else dict(groups)
    _check_enough(len(examples), checked, folds)
    dealing = ("fold", repeat) if repeat else ("fold",)
    # A group's class is its smallest answer, which does not depend on the order of its rows.
    ordered = sorted(checked.items(), key=lambda g: (min(answers[i] for i in g[1]), content_hash(seed, *dealing, g[0])))
    result = np.full(len(examples), UNCHECKED, dtype=np.int64)
    for number, (_, members) in enumerate(ordered):
        result[members] = number % folds
    return result


def rare_notes(examples: Sequence[Example], kind: Kind, folds: np.ndarray) -> tuple[str, ...]:
    """What is to be said of the labels with one labelled row or none, given the folds of the rows."""
    if kind != "classification":
        return ()
    labels = examples[0].options
    answers = np.array([_answer(e) for e in examples])
    unchecked = answers[folds == UNCHECKED]
    notes = []
    if len(unchecked):
        once = [labels[i] for i in np.unique(unchecked)]
        notes.append(
            f"{len(unchecked)} labelled row(s) are all that {_named(once, labels)} have, or all ask one question: they train "
            "every probe, none is checked on them, and a student learns their gold labels"
        )
    if missing := [label for i, label in enumerate(labels) if i not in answers]:
        notes.append(
            f"{_named(missing, labels)} have no labelled row: a probe gives them the little that a rule of succession does"
        )
    return tuple(notes)


def _named(some: Sequence[str], labels: Sequence[str]) -> str:
    return f"{len(some)} of {len(labels)} labels ({', '.join(map(repr, some[:3]))}{', ...' if len(some) > 3 else ''})"


def _checked(groups: Mapping[str, list[int]], answers: Sequence[int]) -> dict[str, list[int]]:
    """The groups with a class that another group has too: theirs is the word of a model that has seen the class."""
    groups_of: dict[int, set[str]] = defaultdict(set)
    for key, members in groups.items():
        for i in members:
            groups_of[answers[i]].add(key)
    return {key: members for key, members in groups.items() if any(len(groups_of[answers[i]]) > 1 for i in members)}


def _check_enough(rows: int, checked: Mapping[str, list[int]], folds: int) -> None:
    left = sum(map(len, checked.values()))
    which = f"{rows} labelled rows"
    if left < rows >= 2 * folds:
        which = f"the {left} of {which} that share their label with another"
    if left < 2 * folds:
        raise DataError(
            f"{which} are too few for {folds} folds (two a fold are the least); "
            "label more rows, raise task.labels, or lower probe.folds"
        )
    if len(checked) < folds:
        raise DataError(
            f"{which} ask only {len(checked)} different questions (variants count once), too few for {folds} folds"
        )


def _answer(example: Example) -> int:
    assert example.answer is not None
    return example.answer
