"""Train a student's network on rows, from its checkpoint if there is one."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Sequence
from importlib import util
from pathlib import Path
from typing import Any

import torch
from transformers import TrainerCallback, TrainingArguments

from probekd.config import StudentConfig
from probekd.errors import ConfigError
from probekd.progress import Progress, Silent
from probekd.student.checkpoint import Checkpoints, put_back
from probekd.student.history import Epoch, has_stopped_gaining
from probekd.student.objective import Objective
from probekd.student.processes import is_main, process_count
from probekd.student.rows import TrainingRow
from probekd.student.trainer import HeldOut, StudentTrainer
from probekd.teacher.load import quiet_transformers

LOGGED_STEPS = 10
# Trackers whose files Trainer puts under its output directory, which is otherwise a temporary one.
FILED = {"tensorboard"}


def fit(
    objective: Objective,
    rows: Sequence[TrainingRow],
    *,
    config: StudentConfig,
    epochs: float,
    seed: int,
    held_out: HeldOut | None = None,
    stop_after: float | None = None,
    checkpoints: Checkpoints | None = None,
    logs: Path | None = None,
    progress: Progress,
) -> tuple[Epoch, ...]:
    """Train ``objective`` in place with AdamW and return what each epoch came to.

    With held-out rows and ``config.early_stopping``, training ends when it has stopped gaining, and the best epoch's
    weights are kept; else the last ones.

    Args:
        objective: The student and its loss.
        rows: Training rows.
        config: Training options.
        epochs: Passes over the rows, over which the learning rate falls.
        seed: Of the order of rows and dropout.
        held_out: Rows whose log-loss is taken at the end of each epoch.
        stop_after: End after so many epochs, with the learning rate on its way.
        checkpoints: Where checkpoints go; None = nowhere.
        logs: Directory for the files of a tracker that has no place of its own; None = there is none.
        progress: Told of each step.

    Raises:
        ConfigError: a step that cannot be divided among processes, a tracker that is not installed, or one without a
            place for its files.
        ModelError: the loss became infinite or nan.
    """
    check_logs(config, logs)
    stopping = config.early_stopping if held_out is not None else None
    with tempfile.TemporaryDirectory() as scratch, quiet_transformers():
        trainer = StudentTrainer(
            objective,
            rows,
            args=_arguments(config, epochs, seed, str(logs) if logs and FILED & {*config.report_to} else scratch),
            held_out=held_out,
            keep_best=stopping is not None,
            checkpoints=checkpoints,
        )
        refuse_shards(trainer)
        progress = progress if is_main() else Silent()
        trainer.add_callback(_Pace(trainer, stopping.patience if stopping else None, stop_after, progress))
        start = checkpoints.find() if checkpoints else None
        try:
            trainer.train(resume_from_checkpoint=str(start) if start else None)
        finally:
            progress.finish()
    if trainer.best is not None:
        put_back(objective, trainer.best)
    return tuple(trainer.history)


def refuse_shards(trainer: Any) -> None:
    """Raise ConfigError where a launcher asks for a student in shards, of which no checkpoint would be whole."""
    if trainer.is_fsdp_enabled or trainer.is_deepspeed_enabled:
        raise ConfigError(
            "a student is held whole by every process that trains it, and not in shards: launch without FSDP and DeepSpeed"
        )


class _Pace(TrainerCallback):
    """Says when to evaluate, to write a checkpoint and to end, and passes each step on to the caller's progress."""

    def __init__(
        self, trainer: StudentTrainer, patience: int | None, stop_after: float | None, progress: Progress
    ) -> None:
        self.trainer = trainer
        self.patience = patience
        self.stop_after = stop_after
        self.progress = progress

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.progress.start("student", state.max_steps, "steps")
        if state.global_step:
            self.progress.advance(state.global_step)

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.progress.advance(1)
        if self.stop_after is not None and state.epoch >= self.stop_after - 1e-6:
            control.should_training_stop = True
        # The last step of an epoch is not over before the held-out rows are read.
        ends = control.should_training_stop or state.epoch == int(state.epoch)
        control.should_save = not ends and self._due()

    def on_epoch_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        control.should_evaluate = True
        control.should_save = not control.should_training_stop and self._due()

    def on_evaluate(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if self.patience is not None and has_stopped_gaining(self.trainer.history, self.patience):
            control.should_training_stop = True
            # A training that is resumed takes at least one step, and this one is not to take any more.
            control.should_save = False

    def _due(self) -> bool:
        """Whether any process's clock says that it is time: all have to write it together."""
        checkpoints = self.trainer.checkpoints
        if checkpoints is None:
            return False
        accelerator = self.trainer.accelerator
        return bool(accelerator.gather(torch.tensor(checkpoints.due(), device=accelerator.device)).any())


def check_steps(config: StudentConfig) -> int:
    """The parts that each step is dealt into, over all processes.

    Raises:
        ConfigError: a step that cannot be divided among them, or a tracker that is not installed.
    """
    parts = process_count() * config.gradient_accumulation
    if config.batch_size % parts:
        raise ConfigError(
            f"student.batch_size: the {config.batch_size} rows of a step cannot be dealt evenly to {process_count()} "
            f"process(es) in {config.gradient_accumulation} part(s); make it a multiple of {parts}"
        )
    for name in config.report_to:
        if util.find_spec(name) is None:
            raise ConfigError(f"student.report_to: {name} is not installed; pip install {name}, or leave it out")
    return parts


def check_logs(config: StudentConfig, logs: Path | None) -> None:
    """Raise ConfigError where what a tracker writes would be gone with the training.

    Args:
        config: Training options.
        logs: Directory for its files; None = there is none, but for what the tracker's own variable names.
    """
    if FILED & {*config.report_to} and logs is None and "TENSORBOARD_LOGGING_DIR" not in os.environ:
        raise ConfigError(
            "student.report_to: tensorboard writes beside the student's directory, and this student is given none; give "
            "output_dir, set TENSORBOARD_LOGGING_DIR, or leave tensorboard out"
        )


def _arguments(config: StudentConfig, epochs: float, seed: int, place: str) -> TrainingArguments:
    parts = check_steps(config)
    cuda = torch.cuda.is_available()
    arguments = TrainingArguments(
        output_dir=place,
        num_train_epochs=epochs,
        per_device_train_batch_size=config.batch_size // parts,
        gradient_accumulation_steps=config.gradient_accumulation,
        learning_rate=config.learning_rate,
        lr_scheduler_type=config.scheduler,
        warmup_steps=config.warmup,
        weight_decay=config.weight_decay,
        bf16=config.bf16,
        seed=seed,
        data_seed=seed,
        use_cpu=not cuda,
        dataloader_num_workers=0,
        dataloader_pin_memory=cuda,
        remove_unused_columns=False,
        save_strategy="no",
        report_to=list(config.report_to) or "none",
        logging_strategy="steps" if config.report_to else "no",
        logging_steps=LOGGED_STEPS,
        logging_nan_inf_filter=False,
        disable_tqdm=True,
    )
    # Without a launcher, one process uses one GPU: DataParallel would make a step of other rows than asked for.
    arguments._n_gpu = min(arguments.n_gpu, 1)
    return arguments
