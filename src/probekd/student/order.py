"""The order of training rows: from seed and epoch alone, so that every process and every resumed training agrees."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
from torch.utils.data import Sampler

# Rows are sorted by length among so many steps' worth of them, or a quarter of all rows where those are fewer.
SORTED_STEPS = 50


def step_order(lengths: Sequence[int], *, step_rows: int, multiple: int, seed: int, epoch: int) -> list[int]:
    """Numbers of all rows in random order, those of one step of similar length.

    Rows are shuffled; a last step that is not full takes the last of them as they come; the others are sorted within
    groups of many steps, and the steps are shuffled again, since a training that always goes from long to short rows
    learns them in that order. The step with the longest row comes first: what does not fit into the memory fails at once.

    Args:
        lengths: Tokens of each row.
        step_rows: Rows a step, over all processes.
        multiple: The result's length is a multiple of it; numbers beyond ``len(lengths)`` stand for copies of the last
            step's rows that count for nothing (``rows.TrainingRows``).
        seed: Of the training.
        epoch: Each has its own order.
    """
    generator = np.random.default_rng((seed, epoch))
    n = len(lengths)
    order = generator.permutation(n)
    full = n - n % step_rows
    steps = [order[i : i + step_rows] for i in range(0, full, step_rows)]
    span = min(SORTED_STEPS, max(1, len(steps) // 4))
    tokens = np.asarray(lengths)
    groups = [np.concatenate(steps[i : i + span]) for i in range(0, len(steps), span)]
    ordered = [g[np.argsort(-tokens[g], kind="stable")] for g in groups]
    steps = [g[i : i + step_rows] for g in ordered for i in range(0, len(g), step_rows)]
    steps = [steps[i] for i in generator.permutation(len(steps))]
    if steps:
        steps.insert(0, steps.pop(int(np.argmax([tokens[step].max() for step in steps]))))
    last = order[full:]
    missing = -n % multiple
    copies = n + np.resize(last if len(last) else order[:1], missing)
    return [int(i) for i in np.concatenate([*steps, last, copies])]


class StepSampler(Sampler[int]):
    """``step_order`` of the epoch that Trainer has set."""

    def __init__(self, lengths: Sequence[int], *, step_rows: int, multiple: int, seed: int) -> None:
        """Take what ``step_order`` takes."""
        self.lengths = lengths
        self.step_rows = step_rows
        self.multiple = multiple
        self.seed = seed
        self.epoch = 0

    def set_epoch(self, epoch: int) -> None:
        """Choose the epoch's order; Trainer and accelerate call this at its start."""
        self.epoch = epoch

    def __len__(self) -> int:
        return len(self.lengths) + -len(self.lengths) % self.multiple

    def __iter__(self) -> Iterator[int]:
        return iter(
            step_order(self.lengths, step_rows=self.step_rows, multiple=self.multiple, seed=self.seed, epoch=self.epoch)
        )
