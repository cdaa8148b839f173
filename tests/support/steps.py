"""Train a tiny student without dropout and record every step: its rows' mean loss, and its gradient.

accelerate launch --num_processes 2 --cpu steps.py MODEL_DIR OUTPUT.safetensors '{"batch_size": 8}'
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import save_file
from transformers import TrainerCallback

from probekd.config import StudentConfig
from probekd.progress import Silent
from probekd.student import distill
from probekd.student import fit as fit_module
from probekd.student.kinds.head import Head
from probekd.student.lessons import Lesson
from probekd.student.losses import DIVERGENCES, RowWeights
from probekd.student.objective import Objective
from probekd.student.processes import is_main
from probekd.student.rows import TrainingRow
from probekd.student.trainer import StudentTrainer, seeded
from probekd.tasks.base import Example, Task

WORDS = ("dog", "cat", "horse", "cow", "hammer", "saw", "drill", "wrench", "bread", "rice", "soup", "cake")
ROWS = 21


def tiny_rows(kind: Head) -> list[TrainingRow]:
    """Multiple choice of 2 to 4 options, every third row of the pool, all with targets and weights of their own."""
    draw = np.random.default_rng(5)
    examples = [
        Example(
            id=str(i),
            question=" ".join(["which is a", *draw.choice(WORDS, size=i % 7), "?"]),
            options=tuple(draw.choice(WORDS, size=2 + i % 3, replace=False)),
        )
        for i in range(ROWS)
    ]
    lessons = [
        Lesson(
            target_logits=draw.normal(size=len(e.options)),
            answer=i % 2,
            weights=RowWeights(gold=0.0 if i % 3 == 2 else 0.5, soft=float(draw.uniform(0.2, 2))),
        )
        for i, e in enumerate(examples)
    ]
    return [TrainingRow(encoded=x, lesson=y) for x, y in zip(kind.encode(examples), lessons, strict=True)]


class _Record(TrainerCallback):
    def __init__(self, objective: Objective) -> None:
        self.objective = objective
        self.gradients: list[torch.Tensor] = []

    def on_pre_optimizer_step(self, *args: Any, **kwargs: Any) -> None:
        gradients = [p.grad.flatten() for p in self.objective.parameters() if p.grad is not None]
        self.gradients.append(torch.cat(gradients).clone())


def record(model: Path, **options: Any) -> dict[str, torch.Tensor]:
    """Losses (epochs,), gradients (steps, parameters), and the final weights (parameters,)."""
    config = StudentConfig(model=str(model), **{"learning_rate": 1e-3, **options})
    with seeded(0):
        kind = Head.load(model, Task(name="which", kind="multiple_choice", splits={}), config)
        for module in kind.network.modules():
            if isinstance(module, torch.nn.Dropout):
                module.p = 0.0
        objective = Objective(kind, divergence=DIVERGENCES["forward_kl"], temperature=2.0)
        made: list[_Record] = []

        class Recorded(StudentTrainer):
            def __init__(self, *args: Any, **kwargs: Any) -> None:
                super().__init__(*args, **kwargs)
                made.append(_Record(objective))
                self.add_callback(made[0])

        before, fit_module.StudentTrainer = fit_module.StudentTrainer, Recorded  # type: ignore[misc]
        try:
            history = fit_module.fit(objective, tiny_rows(kind), config=config, epochs=3, seed=0, progress=Silent())
        finally:
            fit_module.StudentTrainer = before  # type: ignore[misc]
    return {
        "losses": torch.tensor([epoch.loss for epoch in history], dtype=torch.float64),
        "gradients": torch.stack(made[0].gradients),
        "weights": torch.cat([p.detach().flatten() for p in objective.parameters()]),
    }


def whole(model: Path, directory: Path) -> None:
    """Everything of ``distill``, with a checkpoint after each step."""
    labels = ("animal", "tool", "food")
    texts = [(f"the {word} seen here", k) for k in range(3) for word in WORDS[4 * k : 4 * k + 4]]
    rows = tuple(Example(id=text, question=text, options=labels, answer=k) for text, k in texts)
    task = Task(name="kinds", kind="classification", splits={"train": rows}, labels=labels)
    config = StudentConfig(model=str(model), batch_size=4, label_epochs=2, checkpoint_seconds=0)
    student = distill(model, task, None, method="labels", config=config, output_dir=directory)
    assert len(student.predict_proba(rows)) == 12


if __name__ == "__main__":
    found = record(Path(sys.argv[1]), **json.loads(sys.argv[3]))
    output = Path(sys.argv[2])
    whole(Path(sys.argv[1]), output / "student")
    if is_main():
        save_file(
            {**found, "processes": torch.tensor(torch.distributed.get_world_size())}, output / "steps.safetensors"
        )
