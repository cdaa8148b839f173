"""The time to a trained student: states read once and a probe, against TRL's GKD with the teacher in every step.

GKD compares distributions over the whole vocabulary, so student and teacher must share it: the student is the teacher's
first blocks. It learns to answer with a label token, of the same prompts, for as many epochs. TRL's cheapest setting is
timed, on given answers (``lmbda`` 0: nothing is generated); of a pool row, whose answer is not known, some label's token
stands in the place of the answer, which the distribution there does not depend on. Ours is timed from the untouched teacher
to the saved student, into an empty cache.
"""

from __future__ import annotations

import os
import random
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, PrinterCallback

from probekd.config import StudentConfig, TeacherConfig
from probekd.extraction import extract
from probekd.probes.fit import fit_probes, soft_labels
from probekd.student import distill
from probekd.student.kinds.label_token import LabelToken
from probekd.student.trainer import seeded
from probekd.tasks import load_task
from probekd.tasks.base import Task
from probekd.teacher.load import load_teacher, quiet_transformers

TASK = "wordnet_which"
SEED = 0
NOT_INSTALLED = "trl is not installed: pip install trl"


@dataclass(frozen=True, kw_only=True)
class Plan:
    """What is distilled.

    Attributes:
        teacher: A local decoder.
        blocks: How many of its first blocks the student has.
        labels: Labelled rows.
        pool: Unlabelled rows.
        epochs: Passes over all of them.
        batch_size: Rows a step.
    """

    teacher: Path
    blocks: int
    labels: int
    pool: int
    epochs: int
    batch_size: int

    def config(self, student: Path) -> StudentConfig:
        """How the student is trained by both."""
        return StudentConfig(
            model=str(student),
            kind="label_token",
            epochs=self.epochs,
            batch_size=self.batch_size,
            early_stopping=None,
            max_length=512,
        )


def write_student(plan: Plan, directory: Path) -> None:
    """The teacher's first blocks, with its norm and its words."""
    with quiet_transformers():
        network = AutoModelForCausalLM.from_pretrained(plan.teacher, num_hidden_layers=plan.blocks, dtype=torch.float32)
        network.save_pretrained(directory)
        AutoTokenizer.from_pretrained(plan.teacher).save_pretrained(directory)


def ours(plan: Plan, task: Task, student: Path) -> dict[str, float]:
    """Seconds of each stage."""
    seconds, began = {}, time.perf_counter()

    def lap(name: str) -> None:
        nonlocal began
        seconds[name], began = time.perf_counter() - began, time.perf_counter()

    teacher = load_teacher(TeacherConfig(model=str(plan.teacher)))
    states = extract(teacher, task, splits=("train",))
    lap("labelled rows read")
    probe = fit_probes(states, task, seed=SEED)
    lap("probe fitted")
    for layout, (positions, depths) in probe.needs.items():
        states += extract(
            teacher,
            task,
            splits=("unlabelled",),
            layouts=(layout,),
            positions=positions,
            depths=depths,
            outputs=layout in probe.layouts_of_words,
        )
    targets = soft_labels(probe, states)
    lap("pool read")
    del teacher
    with tempfile.TemporaryDirectory() as scratch:
        distill(student, task, targets, config=plan.config(student), output_dir=Path(scratch) / "s", seed=SEED)
    lap("student trained")
    return seconds


def online(plan: Plan, task: Task, student: Path) -> float:
    """Seconds of TRL's training, models loaded and all."""
    from trl.experimental.gkd import GKDConfig, GKDTrainer

    began = time.perf_counter()
    with seeded(SEED), quiet_transformers(), tempfile.TemporaryDirectory() as scratch:
        config = plan.config(student)
        kind = LabelToken.load(student, task, config)
        teacher = AutoModelForCausalLM.from_pretrained(plan.teacher, dtype=torch.float32).eval()
        examples = task.rows("train", "unlabelled")
        rows = [
            {"input_ids": [*row.sequences[0]["input_ids"][: row.said[0].at + 1], row.said[example.answer or 0].token]}
            for example, row in zip(examples, kind.encode(examples), strict=True)
        ]
        random.Random(SEED).shuffle(rows)

        def collate(batch: Sequence[Mapping[str, list[int]]]) -> dict[str, torch.Tensor]:
            longest = max(len(row["input_ids"]) for row in batch)
            ids = torch.zeros(len(batch), longest, dtype=torch.long)
            mask, labels = torch.zeros_like(ids), torch.full_like(ids, -100)
            for i, row in enumerate(batch):
                n = len(row["input_ids"])
                ids[i, :n], mask[i, :n], labels[i, n - 1] = torch.tensor(row["input_ids"]), 1, row["input_ids"][-1]
            return {"input_ids": ids, "attention_mask": mask, "labels": labels}

        tokenizer = kind.tokenizer
        tokenizer.pad_token = tokenizer.pad_token or tokenizer.eos_token
        import datasets

        arguments = GKDConfig(
            output_dir=scratch,
            lmbda=0.0,
            beta=0.0,
            temperature=1.0,
            num_train_epochs=plan.epochs,
            per_device_train_batch_size=plan.batch_size,
            learning_rate=config.learning_rate,
            gradient_checkpointing=False,
            bf16=False,
            use_cpu=True,
            save_strategy="no",
            logging_strategy="no",
            report_to="none",
            disable_tqdm=True,
            max_length=None,
            dataloader_pin_memory=False,
        )
        trainer = GKDTrainer(
            model=kind.network,
            teacher_model=teacher,
            args=arguments,
            train_dataset=datasets.Dataset.from_list(rows),
            data_collator=collate,
            processing_class=tokenizer,
        )
        trainer.remove_callback(PrinterCallback)
        trainer.train()
        trainer.save_model(scratch)
    return time.perf_counter() - began


def measure(plan: Plan, repeats: int) -> dict[str, Any]:
    """Time both, in turns, each into an empty cache."""
    from importlib.util import find_spec

    from student import say, spread

    task = load_task(TASK, labels=plan.labels, pool=plan.pool, seed=SEED)
    stages: list[dict[str, float]] = []
    theirs: list[float] = []
    with tempfile.TemporaryDirectory() as scratch:
        student = Path(scratch) / "student"
        write_student(plan, student)
        for i in range(repeats):
            say(f"the whole: repeat {i + 1} of {repeats}")
            os.environ["PROBEKD_CACHE"] = str(Path(scratch) / f"cache-{i}")
            stages.append(ours(plan, task, student))
            if find_spec("trl") is not None:
                theirs.append(online(plan, task, student))
    totals = [sum(s.values()) for s in stages]
    found: dict[str, Any] = {
        "task": TASK,
        **{k: v for k, v in asdict(plan).items() if k != "teacher"},
        "teacher": plan.teacher.name,
        "probekd": {
            "seconds": spread(totals),
            "stages": {name: spread([s[name] for s in stages]) for name in stages[0]},
        },
        "how": " ".join((__doc__ or "").split()),
    }
    if theirs:
        ratios = [b / a for a, b in zip(totals, theirs, strict=True)]
        return {**found, "trl_gkd": {"seconds": spread(theirs)}, "times_faster": spread(ratios)}
    return {**found, "trl_gkd": {"not_run": NOT_INSTALLED}}


def summary(found: Mapping[str, Any]) -> str:
    """One line."""
    mine = found["probekd"]["seconds"]["median"]
    if "times_faster" not in found:
        return f"from teacher to student in {mine:.1f} s; {found['trl_gkd']['not_run']}"
    theirs, times = found["trl_gkd"]["seconds"]["median"], found["times_faster"]["median"]
    return f"from teacher to student in {mine:.1f} s, with the teacher in the loop {theirs:.1f} s: {times:.2f} times"
