"""The training loop: Transformers' Trainer with this project's loss, and nothing else of its own."""

from __future__ import annotations

import math
import random
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor
from transformers import PrinterCallback, Trainer, TrainerCallback, TrainingArguments
from transformers.trainer_pt_utils import LengthGroupedSampler

from probekd.config import StudentConfig
from probekd.errors import ModelError
from probekd.progress import Progress
from probekd.student.inputs import Encoded
from probekd.student.kinds import StudentKind
from probekd.student.losses import UNLABELLED, distillation_loss
from probekd.teacher.load import quiet_transformers

WARMUP = 0.1
WEIGHT_DECAY = 0.01


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainingRow:
    """One row to learn from.

    Attributes:
        encoded: Its tokens.
        target_logits: Target at temperature 1, shape (k,); -inf where the probability is 0.
        answer: Gold index, or ``UNLABELLED``.
    """

    encoded: Encoded
    target_logits: np.ndarray
    answer: int = UNLABELLED


def collate(kind: StudentKind, rows: Sequence[TrainingRow]) -> dict[str, Tensor]:
    """Rows as one batch: what ``kind.logits`` takes, target_logits (b, k) with -inf beyond a row's options, answers (b,)."""
    targets = torch.full((len(rows), max(len(row.target_logits) for row in rows)), -torch.inf)
    for target, row in zip(targets, rows, strict=True):
        target[: len(row.target_logits)] = torch.from_numpy(row.target_logits)
    answers = torch.tensor([row.answer for row in rows])
    return {**kind.collate([row.encoded for row in rows]), "target_logits": targets, "answers": answers}


class StudentTrainer(Trainer):
    """Trainer on ``TrainingRow`` lists with the distillation loss and batches of similar length."""

    # The loss is a mean over its batch. Left to itself Trainer takes it for one already divided by the accumulation
    # steps, because the model's forward accepts keyword arguments.
    loss_is_scaled_for_ga = False

    def __init__(
        self, kind: StudentKind, rows: Sequence[TrainingRow], *, alpha: float, temperature: float, **kwargs: Any
    ) -> None:
        """Take the student, its rows, the loss's two numbers (see ``distillation_loss``), and Trainer's own arguments."""
        super().__init__(
            model=kind.network, train_dataset=list(rows), data_collator=lambda batch: collate(kind, batch), **kwargs
        )
        self.kind = kind
        self.lengths = [row.encoded.tokens for row in rows]
        # Trainer would print every logged loss on stdout once its own progress bar is off.
        self.remove_callback(PrinterCallback)
        self.alpha = alpha
        self.temperature = temperature

    def compute_loss(
        self, model: Any, inputs: dict[str, Tensor], return_outputs: bool = False, num_items_in_batch: Any = None
    ) -> Any:
        """The distillation loss of one batch of ``collate``."""
        targets, answers = (inputs.pop(name) for name in ("target_logits", "answers"))
        logits = self.kind.logits(model, inputs)
        loss = distillation_loss(logits, targets, answers, alpha=self.alpha, temperature=self.temperature)
        return (loss, {"logits": logits}) if return_outputs else loss

    def _get_train_sampler(self, train_dataset: Any = None) -> LengthGroupedSampler:
        # Trainer's own grouping looks for a flat list of tokens in each row, which multiple choice does not have.
        return LengthGroupedSampler(self.args.train_batch_size, lengths=self.lengths)


class _Report(TrainerCallback):
    """Passes each step on to the caller's progress."""

    def __init__(self, progress: Progress) -> None:
        self.progress = progress

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.progress.start("student", state.max_steps, "steps")

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.progress.advance(1)


@contextmanager
def seeded(seed: int) -> Iterator[None]:
    """Start torch from ``seed`` inside the block; after it, torch's, numpy's and Python's generators are as before.

    Trainer seeds all three globally, which is not a library's to leave behind.
    """
    python, legacy = random.getstate(), np.random.get_state()
    try:
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            yield
    finally:
        random.setstate(python)
        np.random.set_state(legacy)


def fit(
    kind: StudentKind,
    rows: Sequence[TrainingRow],
    *,
    config: StudentConfig,
    epochs: float,
    alpha: float,
    seed: int,
    progress: Progress,
) -> float:
    """Train ``kind.network`` in place (AdamW, linear decay after a tenth of warm-up) and return its mean training loss.

    Raises:
        ModelError: the loss became infinite or nan.
    """
    cuda = torch.cuda.is_available()
    with tempfile.TemporaryDirectory() as scratch, quiet_transformers():
        arguments = TrainingArguments(
            output_dir=scratch,
            num_train_epochs=epochs,
            per_device_train_batch_size=config.batch_size,
            learning_rate=config.learning_rate,
            lr_scheduler_type="linear",
            warmup_steps=WARMUP,
            weight_decay=WEIGHT_DECAY,
            seed=seed,
            data_seed=seed,
            use_cpu=not cuda,
            dataloader_num_workers=0,
            dataloader_pin_memory=cuda,
            remove_unused_columns=False,
            save_strategy="no",
            report_to="none",
            disable_tqdm=True,
            logging_strategy="no",
            logging_nan_inf_filter=False,
        )
        trainer = StudentTrainer(
            kind,
            rows,
            alpha=alpha,
            temperature=config.temperature,
            args=arguments,
            callbacks=[_Report(progress)],
        )
        try:
            loss = float(trainer.train().training_loss)
        finally:
            progress.finish()
    if not math.isfinite(loss):
        raise ModelError(f"the student's training loss became {loss}; lower student.learning_rate")
    return loss
