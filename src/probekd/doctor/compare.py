"""Our reading against the reference's: errors by depth, what a wrong one looks like, and the decisions it leads to."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from probekd.config import Position
from probekd.doctor.reference import Truth
from probekd.doctor.sample import Sheet
from probekd.probes.mass_mean import MassMeanProbe, OptionMassMeanProbe
from probekd.teacher.check import relative_error
from probekd.teacher.extract import Reading

READOUTS = ("label_logits", "option_loglik")


def depth_errors(ours: Sequence[Reading], truths: Sequence[Truth]) -> tuple[float, ...]:
    """Worst error at each depth that we read, over all layouts and positions."""
    pairs = [
        (states, truth.reading.states[position])
        for reading, truth in zip(ours, truths, strict=True)
        for position, states in reading.states.items()
    ]
    return tuple(_worst(relative_error(a[k], b[k]) for a, b in pairs) for k in range(len(pairs[0][0])))


def readout_errors(ours: Sequence[Reading], truths: Sequence[Truth]) -> dict[str, float]:
    """Worst error of what the teacher says, where we read it."""
    found: dict[str, float] = {}
    for reading, truth in zip(ours, truths, strict=True):
        for name in READOUTS:
            a, b = getattr(reading, name), getattr(truth.reading, name)
            if a is not None and b is not None:
                # Absent options are NaN in both; a NaN of ours elsewhere stays one.
                pair = (torch.from_numpy(np.where(np.isnan(b), 0.0, v)) for v in (a, b))
                found[name] = relative_error(*pair)
    return found


def _worst(errors: Iterator[float]) -> float:
    """The largest; NaN when there is one."""
    return float(np.max(list(errors)))


def cause(ours: Sequence[Reading], truths: Sequence[Truth], tolerance: float) -> str:
    """What kind of mistake explains our states; empty when none of those that are known does."""
    pairs = [
        (states, truth.reading.states[position], truth.normed[position])
        for reading, truth in zip(ours, truths, strict=True)
        for position, states in reading.states.items()
    ]
    read, depths = len(pairs[0][0]), len(pairs[0][1])
    last = read == depths and any(relative_error(a[-1], b[-1]) > tolerance for a, b, _ in pairs)
    if last and all(relative_error(a[-1], normed) <= tolerance for a, _, normed in pairs):
        return "the state at the last depth is that after the final norm"
    for shift, which in ((1, "above"), (-1, "below")):
        # The depth at the end has nowhere to come from.
        both = range(read - 1) if shift == 1 else range(1, read)
        if both and all(relative_error(a[k], b[k + shift]) <= tolerance for a, b, _ in pairs for k in both):
            return f"the depths are shifted by one: each state is that of the depth {which}"
    return ""


def agreement(sheet: Sheet, ours: Reading, truth: Truth) -> tuple[int, int]:
    """Decisions that are the same, and how many there are.

    The teacher's own, by each readout that is read; and at each depth those of a mass-mean probe for each half of the
    answered rows, fitted on the reference's states of the other half, so that no row is decided by having been learned.
    """
    same = total = 0
    for name in READOUTS:
        a, b = getattr(ours, name), getattr(truth.reading, name)
        if a is not None and b is not None:
            same += int((_best(a) == _best(b)).sum())
            total += len(a)
    for position, mine in ours.states.items():
        for probe, rows in _probes(sheet, position, truth.reading.states[position]):
            for k, states in enumerate(mine):
                a, b = (probe(k)(_present(sheet, s)[rows]) for s in (states, truth.reading.states[position][k]))
                same += int((a == b).sum())
                total += len(rows)
    return same, total


def _best(values: np.ndarray) -> np.ndarray:
    return np.asarray(np.where(np.isnan(values), -np.inf, values).argmax(1))


def _probes(
    sheet: Sheet, position: Position, states: Tensor
) -> Iterator[tuple[Callable[[int], Callable[[np.ndarray], np.ndarray]], list[int]]]:
    """For each half of the answered rows: what decides it at a depth, and its rows."""
    answered = [i for i, row in enumerate(sheet.rows) if row.answer is not None]
    # A state at ``answer`` is about the letters as shown: of several orders, no one reader fits them.
    if len(answered) < 4 or (position == "answer" and sheet.orders > 1):
        return
    family: Any = MassMeanProbe if position == "answer" else OptionMassMeanProbe
    answers = np.array([row.answer if row.answer is not None else -1 for row in sheet.rows])
    for rows, others in ((answered[::2], answered[1::2]), (answered[1::2], answered[::2])):

        def decide(depth: int, others: list[int] = others) -> Callable[[np.ndarray], np.ndarray]:
            probe = family().fit(_present(sheet, states[depth])[others], answers[others])
            return lambda x: np.asarray(probe.predict(x))

        yield decide, rows


def _present(sheet: Sheet, states: Tensor) -> np.ndarray:
    """States (n, d), or (n, k, d) with NaN in the options that a row does not have, as probes want them."""
    x = states.double().numpy().copy()
    if x.ndim == 3:
        for row, values in zip(sheet.rows, x, strict=True):
            values[len(row.options) :] = np.nan
    return np.asarray(x)
