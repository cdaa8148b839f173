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
from probekd.student.inputs import Encoded, pad
from probekd.student.losses import UNLABELLED, distillation_loss
from probekd.tasks.base import Kind
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


def collate(tokenizer: Any, kind: Kind, rows: Sequence[TrainingRow]) -> dict[str, Tensor]:
    """Rows as one batch: model inputs (b, tokens) or (b, k, tokens), target_logits and present (b, k), answers (b,).

    Rows with fewer options than the batch's most get copies of their option 0, marked as not present.
    """
    k = max(len(row.target_logits) for row in rows)
    present = torch.tensor([[j < len(row.target_logits) for j in range(k)] for row in rows])
    targets = torch.full(present.shape, -torch.inf)
    targets[present] = torch.from_numpy(np.concatenate([row.target_logits for row in rows])).float()
    width = k if kind == "multiple_choice" else 1
    padded = [(*row.encoded.sequences, *(row.encoded.sequences[0],) * width)[:width] for row in rows]
    inputs = pad(tokenizer, [sequence for sequences in padded for sequence in sequences])
    if kind == "multiple_choice":
        inputs = {name: tensor.view(len(rows), k, -1) for name, tensor in inputs.items()}
    return {
        **inputs,
        "target_logits": targets,
        "present": present,
        "answers": torch.tensor([row.answer for row in rows]),
    }


class StudentTrainer(Trainer):
    """Trainer on ``TrainingRow`` lists with the distillation loss and batches of similar length."""

    # The loss is a mean over its batch. Left to itself Trainer takes it for one already divided by the accumulation
    # steps, because the model's forward accepts keyword arguments.
    loss_is_scaled_for_ga = False

    def __init__(self, rows: Sequence[TrainingRow], *, alpha: float, temperature: float, **kwargs: Any) -> None:
        """Take the rows, the loss's two numbers (see ``distillation_loss``), and Trainer's own arguments."""
        super().__init__(train_dataset=list(rows), **kwargs)
        self.lengths = [row.encoded.tokens for row in rows]
        # Trainer would print every logged loss on stdout once its own progress bar is off.
        self.remove_callback(PrinterCallback)
        self.alpha = alpha
        self.temperature = temperature

    def compute_loss(
        self, model: Any, inputs: dict[str, Tensor], return_outputs: bool = False, num_items_in_batch: Any = None
    ) -> Any:
        """The distillation loss of one batch of ``collate``."""
        targets, present, answers = (inputs.pop(name) for name in ("target_logits", "present", "answers"))
        outputs = model(**inputs)
        logits = outputs.logits.float().masked_fill(~present, -torch.inf)
        loss = distillation_loss(logits, targets, answers, alpha=self.alpha, temperature=self.temperature)
        return (loss, outputs) if return_outputs else loss

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
    network: Any,
    tokenizer: Any,
    rows: Sequence[TrainingRow],
    kind: Kind,
    *,
    config: StudentConfig,
    epochs: float,
    alpha: float,
    seed: int,
    progress: Progress,
) -> float:
    """Train ``network`` in place (AdamW, linear decay after a tenth of warm-up) and return its mean training loss.

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
            rows,
            alpha=alpha,
            temperature=config.temperature,
            model=network,
            args=arguments,
            data_collator=lambda batch: collate(tokenizer, kind, batch),
            callbacks=[_Report(progress)],
        )
        try:
            loss = float(trainer.train().training_loss)
        finally:
            progress.finish()
    if not math.isfinite(loss):
        raise ModelError(f"the student's training loss became {loss}; lower student.learning_rate")
    return loss
