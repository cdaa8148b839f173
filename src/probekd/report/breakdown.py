"""Where the predictors differ: calibration bins, confusions, groups of rows, and single examples."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from probekd import metrics
from probekd.errors import StoreError
from probekd.report.charts import Bin
from probekd.report.data import Predictions
from probekd.tasks.base import Example

MATRIX_CLASSES = 20
CONFUSED_PAIRS = 20
SHOWN_EXAMPLES = 20
SHOWN_OPTIONS = 10
SHOWN_CHARACTERS = 900


@dataclass(frozen=True, kw_only=True)
class Confused:
    """Rows of class ``gold`` that were called ``said``; ``share`` is of all rows of that class."""

    gold: str
    said: str
    count: int
    share: float


@dataclass(frozen=True, kw_only=True)
class Group:
    """Accuracy of each predictor on the rows that share a property."""

    name: str
    n: int
    chance: float
    accuracy: Mapping[str, float]


@dataclass(frozen=True, kw_only=True)
class Option:
    """An option of a shown example with the probability that teacher output and probe give it."""

    mark: str
    text: str
    gold: bool
    teacher: float
    probe: float
    teacher_top: bool
    probe_top: bool


@dataclass(frozen=True, kw_only=True)
class Case:
    """A row on which teacher output and probe part ways."""

    id: str
    subject: str
    question: str
    options: tuple[Option, ...]
    hidden: int


def clip(text: str, most: int = SHOWN_CHARACTERS) -> str:
    """The text, cut with a count of what is left out when it is longer than ``most`` characters."""
    return text if len(text) <= most else f"{text[:most]} … (+{len(text) - most:,} characters)"


def example_of(examples: Mapping[str, Example], row: str, options: int) -> Example:
    """The task's row of that id.

    Raises:
        StoreError: the task no longer has the row, or has it with another number of options.
    """
    example = examples.get(row)
    if example is None:
        raise StoreError(
            f"predictions.parquet: the task has no row {row!r}; was its file changed after the run? Run again to mend it"
        )
    if len(example.options) != options:
        found = len(example.options)
        raise StoreError(
            f"predictions.parquet: row {row!r} has {options} probabilities but {found} options in the task; run again to mend it"
        )
    return example


def calibration_bins(predictions: Predictions) -> tuple[Bin, ...]:
    """The bins of ECE: equal widths of the top probability; an empty bin has count 0."""
    found = metrics.calibration_bins(predictions.confidences, predictions.tops == predictions.answers)
    return tuple(
        Bin(
            low=b / metrics.ECE_BINS,
            high=(b + 1) / metrics.ECE_BINS,
            count=int(count),
            confidence=float(confidence),
            accuracy=float(accuracy),
        )
        for b, (count, confidence, accuracy) in enumerate(zip(*found, strict=True))
    )


def confusion(predictions: Predictions, classes: int) -> np.ndarray:
    """Counts, shape (gold, said)."""
    counts = np.zeros((classes, classes), dtype=int)
    np.add.at(counts, (predictions.answers, predictions.tops), 1)
    return counts


def confused_pairs(counts: np.ndarray, labels: Sequence[str]) -> tuple[Confused, ...]:
    """The most frequent mistakes, ties in the order of the labels."""
    totals = counts.sum(axis=1)
    wrong = [(int(counts[g, s]), g, s) for g, s in zip(*np.nonzero(counts), strict=True) if g != s]
    wrong.sort(key=lambda item: (-item[0], item[1], item[2]))
    return tuple(
        Confused(gold=labels[g], said=labels[s], count=n, share=n / int(totals[g]))
        for n, g, s in wrong[:CONFUSED_PAIRS]
    )


def groups(
    predictions: Mapping[str, Predictions], examples: Mapping[str, Example], key: Callable[[Example], str]
) -> tuple[Group, ...]:
    """Accuracy by the value of ``key``, largest group first."""
    first = next(iter(predictions.values()))
    rows = [example_of(examples, row, len(p)) for row, p in zip(first.ids, first.probs, strict=True)]
    names = np.array([key(row) for row in rows], dtype=object)
    chance = np.array([1 / len(row.options) for row in rows])
    correct = {who: one.tops == one.answers for who, one in predictions.items()}
    found = [
        Group(
            name=name,
            n=int((names == name).sum()),
            chance=float(chance[names == name].mean()),
            accuracy={who: float(hits[names == name].mean()) for who, hits in correct.items()},
        )
        for name in sorted(set(names))
    ]
    return tuple(sorted(found, key=lambda group: -group.n))


def disagreements(loser: Predictions, winner: Predictions, most: int = SHOWN_EXAMPLES) -> tuple[int, tuple[int, ...]]:
    """Rows that ``winner`` has right and ``loser`` wrong: how many, and the indices of the clearest ones.

    Clearest = largest difference in the probability of the gold option; ties follow the order of the rows.
    """
    rows = np.flatnonzero((winner.tops == winner.answers) & (loser.tops != loser.answers))
    lead = [float(winner.probs[i][winner.answers[i]] - loser.probs[i][loser.answers[i]]) for i in rows]
    order = np.argsort(-np.array(lead), kind="stable")
    return len(rows), tuple(int(rows[i]) for i in order[:most])


def case(example: Example, teacher: np.ndarray, probe: np.ndarray, gold: int, *, lettered: bool) -> Case:
    """The row as the page shows it; of a large label set only the gold label and the two choices."""
    teacher_top, probe_top = int(teacher.argmax()), int(probe.argmax())
    every = range(len(example.options))
    shown = (
        list(every)
        if len(every) <= SHOWN_OPTIONS and lettered
        else [i for i in every if i in (gold, teacher_top, probe_top)]
    )
    return Case(
        id=example.id,
        subject=example.subject,
        question=clip(example.question),
        options=tuple(
            Option(
                mark=chr(ord("A") + i) if lettered else "",
                text=clip(example.options[i], SHOWN_CHARACTERS // 2),
                gold=i == gold,
                teacher=float(teacher[i]),
                probe=float(probe[i]),
                teacher_top=i == teacher_top,
                probe_top=i == probe_top,
            )
            for i in shown
        ),
        hidden=len(every) - len(shown),
    )
