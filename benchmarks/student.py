"""Time the training of a student: a step beside a bare Trainer's, and the whole beside distilling with the teacher in the loop.

    python benchmarks/student.py [--steps 40] [--repeats 5]  writes benchmarks/results/student.json
    python benchmarks/student.py --smoke --student DIR --teacher DIR   a few steps, to see that all works

The step: the same student, the same rows in the same batches; Transformers' Trainer on hard labels as anyone would set
it up, ours on soft targets with all that it does besides. Repeats take turns. The whole: ``student_online.py``.
"""

from __future__ import annotations

import argparse
import platform
import statistics
import sys
import time
from collections.abc import Sequence
from datetime import date
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console
from transformers import DataCollatorWithPadding, PrinterCallback, Trainer, TrainerCallback, TrainingArguments
from transformers.data.data_collator import DataCollatorForMultipleChoice

import student_online
from probekd.config import StudentConfig
from probekd.files import write_json
from probekd.student.fit import fit
from probekd.student.kinds.head import Head
from probekd.student.lessons import soft_lessons
from probekd.student.losses import DIVERGENCES
from probekd.student.objective import Objective
from probekd.student.order import step_order
from probekd.student.rows import TrainingRow
from probekd.student.trainer import seeded
from probekd.targets import SoftTargets
from probekd.tasks import load_task
from probekd.tasks.base import Example, Kind, Task
from probekd.teacher.load import quiet_transformers
from surroundings import machine

HERE = Path(__file__).resolve().parent
MODELS = HERE.parent / "models"
RESULTS = HERE / "results" / "student.json"
TARGET = 1.05
SEED = 0
# First steps allocate what later ones use again.
WARM_UP = 3
TASKS = {"classification": "wordnet_kinds", "multiple_choice": "wordnet_which"}


class Clock:
    """Moments at which steps ended; a ``Progress``."""

    def __init__(self) -> None:
        self.moments: list[float] = []

    def start(self, what: str, total: int, unit: str) -> None:
        """Do nothing."""

    def advance(self, amount: int) -> None:
        """Note the moment."""
        self.moments.append(time.perf_counter())

    def finish(self) -> None:
        """Do nothing."""

    @property
    def seconds(self) -> float:
        """Median of a step, without the first ones."""
        return float(np.median(np.diff(self.moments)[WARM_UP:]))


class _Ticks(TrainerCallback):
    def __init__(self, clock: Clock) -> None:
        self.clock = clock

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.clock.advance(1)


def targets_of(examples: Sequence[Example]) -> SoftTargets:
    """Some soft target for each row: what it says does not matter for the time."""
    draw = np.random.default_rng(SEED)
    n = len(examples)
    return SoftTargets(
        ids=tuple(e.id for e in examples),
        splits=("train",) * n,
        logits=tuple(draw.normal(size=len(e.options)) for e in examples),
        sources=("oof",) * n,
        folds=(-1,) * n,
    )


def ours(task: Task, examples: Sequence[Example], config: StudentConfig) -> float:
    """Seconds a step of this project's training."""
    clock = Clock()
    with seeded(SEED):
        kind = Head.load(config.model, task, config)
        lessons = soft_lessons(examples, targets_of(examples), config, task.name)
        rows = [
            TrainingRow(encoded=x, lesson=lessons[e.id]) for e, x in zip(examples, kind.encode(examples), strict=True)
        ]
        objective = Objective(kind, divergence=DIVERGENCES[config.divergence], temperature=config.temperature)
        fit(objective, rows, config=config, epochs=1, seed=SEED, progress=clock)
    return clock.seconds


def bare(task: Task, examples: Sequence[Example], config: StudentConfig, scratch: str) -> float:
    """Seconds a step of Transformers' Trainer on the gold labels."""
    clock = Clock()
    with seeded(SEED), quiet_transformers():
        kind = Head.load(config.model, task, config)
        encoded = kind.encode(examples)
        order = step_order([row.tokens for row in encoded], step_rows=config.batch_size, multiple=1, seed=SEED, epoch=0)
        choice = task.kind == "multiple_choice"
        rows = [
            {
                **{
                    name: [s[name] for s in encoded[i].sequences] if choice else values
                    for name, values in encoded[i].sequences[0].items()
                },
                "labels": examples[i].answer,
            }
            for i in order
        ]
        collator = (DataCollatorForMultipleChoice if choice else DataCollatorWithPadding)(kind.tokenizer)
        arguments = TrainingArguments(
            output_dir=scratch,
            num_train_epochs=1,
            per_device_train_batch_size=config.batch_size,
            learning_rate=config.learning_rate,
            warmup_steps=config.warmup,
            weight_decay=config.weight_decay,
            train_sampling_strategy="sequential",
            seed=SEED,
            use_cpu=True,
            dataloader_pin_memory=False,
            save_strategy="no",
            logging_strategy="no",
            report_to="none",
            disable_tqdm=True,
        )
        trainer = Trainer(
            model=kind.network,
            args=arguments,
            train_dataset=rows,
            data_collator=collator,
            callbacks=[_Ticks(clock)],
        )
        trainer.remove_callback(PrinterCallback)
        trainer.train()
    return clock.seconds


def compare_steps(kind: Kind, student: str, batch_size: int, steps: int, repeats: int, scratch: str) -> dict[str, Any]:
    """Time a step of both, in turns."""
    task = load_task(TASKS[kind], seed=SEED)
    rows = task.rows("train")
    # Rows of two to five options would be padded in one and not in the other.
    most = max(len(e.options) for e in rows)
    examples = [e for e in rows if len(e.options) == most][: batch_size * steps]
    config = StudentConfig(model=student, batch_size=batch_size, early_stopping=None)
    mine, theirs = [], []
    for i in range(repeats):
        say(f"{kind}: repeat {i + 1} of {repeats}")
        for who in ("ours", "bare") if i % 2 else ("bare", "ours"):
            if who == "ours":
                mine.append(ours(task, examples, config))
            else:
                theirs.append(bare(task, examples, config, scratch))
    ratios = [a / b for a, b in zip(mine, theirs, strict=True)]
    ratio = spread(ratios)
    return {
        "task": task.name,
        "rows_a_step": batch_size,
        "options": most,
        "steps": len(examples) // batch_size,
        "seconds_a_step": {"probekd": spread(mine), "bare_trainer": spread(theirs)},
        "ratio": ratio,
        "target": TARGET,
        "met": ratio["median"] <= TARGET,
    }


def spread(runs: Sequence[float]) -> dict[str, Any]:
    """Median and range of some repeats."""
    rounded = [round(r, 5) for r in runs]
    return {"median": statistics.median(rounded), "min": min(rounded), "max": max(rounded), "runs": rounded}


def say(text: str) -> None:
    """Progress, on stderr."""
    print(text, file=sys.stderr, flush=True)


def versions() -> dict[str, str | None]:
    """Of Python, of what is timed and of what it stands on."""
    found: dict[str, str | None] = {"python": platform.python_version()}
    for name in ("probekd", "torch", "transformers", "accelerate", "trl"):
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            found[name] = None
    return found


def main() -> int:
    """Measure, print and write; 1 when a target is missed."""
    import tempfile

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--student", type=Path, default=MODELS / "minilm-l6", help="the step's student")
    parser.add_argument("--teacher", type=Path, default=MODELS / "smollm2-135m-instruct", help="a decoder")
    parser.add_argument("--blocks", type=int, default=10, help="the teacher's first blocks, the whole's student")
    parser.add_argument("--batch-size", type=int, default=16)
    parser.add_argument("--steps", type=int, default=40)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--labels", type=int, default=100, help="the whole's labelled rows")
    parser.add_argument("--pool", type=int, default=300, help="and its pool")
    parser.add_argument("--epochs", type=int, default=4)
    parser.add_argument("--online-repeats", type=int, default=3)
    parser.add_argument("--smoke", action="store_true", help="a few steps, to see that all works")
    parser.add_argument("--output", type=Path, default=RESULTS)
    args = parser.parse_args()
    if args.smoke:
        args.steps, args.repeats, args.online_repeats, args.batch_size = WARM_UP + 3, 2, 1, 4
        args.labels, args.pool, args.epochs, args.blocks = 44, 20, 1, 1
    with tempfile.TemporaryDirectory() as scratch:
        steps = [
            compare_steps(kind, str(args.student), args.batch_size, args.steps, args.repeats, scratch)
            for kind in ("classification", "multiple_choice")
        ]
    plan = student_online.Plan(
        teacher=args.teacher,
        blocks=args.blocks,
        labels=args.labels,
        pool=args.pool,
        epochs=args.epochs,
        batch_size=args.batch_size,
    )
    whole = student_online.measure(plan, args.online_repeats)
    result = {
        "date": date.today().isoformat(),
        "machine": machine(),
        "versions": versions(),
        "seed": SEED,
        "how": " ".join(__doc__.split()),
        "steps": steps,
        "online": whole,
    }
    write_json(args.output, result)
    console = Console()
    for step in steps:
        r = step["ratio"]
        console.print(
            f"{step['task']}: a step takes {r['median']:.3f} ({r['min']:.3f} to {r['max']:.3f}) of a bare one"
        )
    console.print(student_online.summary(whole))
    return 0 if args.smoke or all(step["met"] for step in steps) else 1


if __name__ == "__main__":
    sys.exit(main())
