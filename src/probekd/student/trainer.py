"""The training loop: Transformers' Trainer with this project's loss, order of rows, held-out rows and checkpoints."""

from __future__ import annotations

import math
import random
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from transformers import PrinterCallback, Trainer, TrainingArguments

from probekd.errors import DivergedError
from probekd.student import checkpoint
from probekd.student.calibration import calibrated_log_loss
from probekd.student.checkpoint import Checkpoints
from probekd.student.history import Epoch, best_epoch
from probekd.student.inputs import Encoded
from probekd.student.logits import row_logits
from probekd.student.objective import Objective
from probekd.student.order import StepSampler
from probekd.student.rows import TrainingRow, TrainingRows, collate


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


@dataclass(frozen=True, kw_only=True)
class HeldOut:
    """Labelled rows that are not trained on.

    Attributes:
        encoded: Their tokens.
        answers: Gold indices, (n,).
    """

    encoded: Sequence[Encoded]
    answers: np.ndarray


class StudentTrainer(Trainer):
    """Trainer on ``TrainingRow`` lists.

    A row's weight in a step is one over the number of rows of the whole step, over all processes and accumulated parts.

    Attributes:
        history: Epochs that are over.
        best: Weights of the best of them, where ``keep_best``.
    """

    # The loss is divided by the rows of the whole step, accumulated parts and all.
    loss_is_scaled_for_ga = True

    def __init__(
        self,
        objective: Objective,
        rows: Sequence[TrainingRow],
        *,
        args: TrainingArguments,
        held_out: HeldOut | None = None,
        keep_best: bool = False,
        checkpoints: Checkpoints | None = None,
        **kwargs: Any,
    ) -> None:
        """Take what is trained, its rows, and Trainer's own arguments.

        Args:
            objective: The student and its loss.
            rows: Training rows.
            args: Trainer's; ``per_device_train_batch_size`` rows at a time.
            held_out: Rows whose log-loss is taken at the end of each epoch.
            keep_best: Keep a copy of the weights at its lowest.
            checkpoints: Where checkpoints go; None = nowhere.
            **kwargs: Of Trainer.
        """
        super().__init__(
            model=objective,
            args=args,
            train_dataset=TrainingRows(rows),
            data_collator=partial(collate, objective.kind),
            **kwargs,
        )
        self.objective: Objective = objective
        self.kind = objective.kind
        self.lengths = [row.encoded.tokens for row in rows]
        self.held_out = held_out
        self.keep_best = keep_best
        self.checkpoints = checkpoints
        self.history: list[Epoch] = []
        self.best: dict[str, Tensor] | None = None
        self._tally = torch.zeros((), dtype=torch.float64)
        # Trainer would print every logged loss on stdout once its own progress bar is off.
        self.remove_callback(PrinterCallback)

    def _get_train_sampler(self, train_dataset: Any = None) -> StepSampler:
        together = self.args.train_batch_size * self.accelerator.num_processes
        step_rows = together * self.args.gradient_accumulation_steps
        return StepSampler(self.lengths, step_rows=step_rows, multiple=together, seed=self.args.seed)

    def _get_num_items_in_batch(self, batch_samples: list[dict[str, Tensor]], device: torch.device) -> Tensor | None:
        if not batch_samples:
            return None
        counted = torch.stack([batch["counts"].sum() for batch in batch_samples]).sum().to(device)
        return self.accelerator.gather(counted).sum()  # type: ignore[no-any-return]

    def compute_loss(
        self, model: Any, inputs: dict[str, Tensor], return_outputs: bool = False, num_items_in_batch: Any = None
    ) -> Any:
        """Sum of the losses of this part's rows over the number of rows of the whole step."""
        counts = inputs.pop("counts")
        losses = model(inputs)
        rows = counts.sum() if num_items_in_batch is None else num_items_in_batch
        # Gradients of several processes are averaged, so each has to give as many times its share.
        loss = (losses * counts).sum() / rows * self.accelerator.num_processes
        return (loss, {"losses": losses}) if return_outputs else loss

    def training_step(self, model: Any, inputs: dict[str, Any], num_items_in_batch: Any = None) -> Tensor:
        """Trainer's, and the loss is added up."""
        loss = super().training_step(model, inputs, num_items_in_batch)
        self._tally = self._tally.to(loss.device) + loss.double()
        return loss

    def evaluate(self, *args: Any, **kwargs: Any) -> dict[str, float]:
        """End an epoch: note its loss and the held-out rows', and keep the weights if they are the best so far.

        Every process reads all held-out rows, so that all of them take the same decisions.

        Raises:
            DivergedError: the training loss has become infinite or nan.
        """
        steps = self.state.global_step
        done = steps - (self.history[-1].steps if self.history else 0)
        epoch = Epoch(epoch=self.state.epoch or 0.0, steps=steps, loss=self._mean_tally() / done)
        metrics = {"epoch_loss": epoch.loss}
        if self.held_out is not None:
            logits = row_logits(self.kind, self.held_out.encoded)
            said = np.array([row.argmax() for row in logits])
            log_loss = calibrated_log_loss(logits, self.held_out.answers)
            accuracy = float((said == self.held_out.answers).mean())
            epoch = Epoch(epoch=epoch.epoch, steps=steps, loss=epoch.loss, log_loss=log_loss, accuracy=accuracy)
            metrics |= {"eval_log_loss": log_loss, "eval_accuracy": accuracy}
        self.history.append(epoch)
        self._tally = torch.zeros_like(self._tally)
        if self.keep_best and best_epoch(self.history) == len(self.history) - 1:
            self.best = checkpoint.copy_of(checkpoint.trained_tensors(self.objective))
        self.log(metrics)
        self.control = self.callback_handler.on_evaluate(self.args, self.state, self.control, metrics)
        return metrics

    def _mean_tally(self) -> float:
        """The epoch's losses added up so far, the mean over the processes."""
        total = float(self.accelerator.gather(self._tally.to(self.accelerator.device)).mean())
        if not math.isfinite(total):
            raise DivergedError(f"the student's training loss became {total}; lower student.learning_rate")
        return total

    # Checkpoints: Trainer decides when these are called, and all that they write and read is this project's own.

    def _save_checkpoint(self, model: Any, trial: Any) -> None:
        assert self.checkpoints is not None and self.optimizer is not None and self.lr_scheduler is not None
        loop = checkpoint.Loop(
            history=tuple(self.history),
            tally=torch.tensor(self._mean_tally(), dtype=torch.float64),
            generators=checkpoint.generator_states(self.accelerator),
            best=self.best,
        )
        if self.args.should_save:
            checkpoint.write_checkpoint(
                self.checkpoints,
                weights=checkpoint.trained_tensors(self.objective),
                optimizer=self.optimizer.state_dict(),
                scheduler=self.lr_scheduler.state_dict(),
                loop=loop,
                trainer_state=self.state,
            )
        self.checkpoints.written()

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: Any = None) -> None:
        directory = Path(resume_from_checkpoint)
        checkpoint.put_back(self.objective, checkpoint.read_weights(directory))
        loop = checkpoint.read_loop(directory)
        self.history, self._tally = list(loop.history), loop.tally
        self.best = None if loop.best is None else dict(loop.best)

    def _load_optimizer_and_scheduler(self, directory: str | None) -> None:
        if directory is not None:
            assert self.optimizer is not None and self.lr_scheduler is not None
            optimizer, scheduler = checkpoint.read_optimizer(Path(directory))
            self.optimizer.load_state_dict(optimizer)
            self.lr_scheduler.load_state_dict(scheduler)

    def _load_rng_state(self, directory: str | None) -> None:
        if directory is not None:
            checkpoint.set_generators(checkpoint.read_loop(Path(directory)).generators, self.args.process_index)
