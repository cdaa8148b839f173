"""Training rows, and a batch of them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from probekd.student.inputs import Encoded
from probekd.student.kinds import StudentKind
from probekd.student.lessons import Lesson


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainingRow:
    """One row to learn from.

    Attributes:
        encoded: Its tokens.
        lesson: What it teaches.
    """

    encoded: Encoded
    lesson: Lesson


@dataclass(frozen=True)
class TrainingRows:
    """Rows by number, and copies of them that count for nothing.

    Number n + i of n rows is such a copy of row i: it makes the batches of several processes even
    (``order.step_order``), where repeating a row for true would double its weight.
    """

    rows: Sequence[TrainingRow]

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, number: int) -> tuple[TrainingRow, bool]:
        """The row, and whether it counts."""
        return self.rows[number % len(self.rows)], number < len(self.rows)


def collate(kind: StudentKind, numbered: Sequence[tuple[TrainingRow, bool]]) -> dict[str, Tensor]:
    """Rows as one batch.

    Returns:
        What ``kind.logits`` takes; ``target_logits`` (b, k), -inf beyond a row's options; ``answers``, ``gold_weights``,
        ``soft_weights`` and ``counts`` (1, or 0 for a copy), each (b,); with teacher states, ``states`` (b, s, d) and
        ``has_state`` (b, s).
    """
    lessons = [row.lesson for row, _ in numbered]
    targets = torch.full((len(lessons), max(len(lesson.target_logits) for lesson in lessons)), -torch.inf)
    for target, lesson in zip(targets, lessons, strict=True):
        target[: len(lesson.target_logits)] = torch.from_numpy(lesson.target_logits)
    return {
        **kind.collate([row.encoded for row, _ in numbered]),
        **_states([lesson.states for lesson in lessons if lesson.states is not None]),
        "target_logits": targets,
        "answers": torch.tensor([lesson.answer for lesson in lessons]),
        "gold_weights": torch.tensor([lesson.weights.gold for lesson in lessons]),
        "soft_weights": torch.tensor([lesson.weights.soft for lesson in lessons]),
        "counts": torch.tensor([float(counts) for _, counts in numbered]),
    }


def _states(states: Sequence[np.ndarray]) -> dict[str, Tensor]:
    if not states:
        return {}
    width = max(len(row) for row in states)
    padded = torch.zeros(len(states), width, states[0].shape[1])
    has_state = torch.zeros(len(states), width, dtype=torch.bool)
    for i, row in enumerate(states):
        padded[i, : len(row)] = torch.from_numpy(row)
        has_state[i, : len(row)] = True
    return {"states": padded, "has_state": has_state}
