from __future__ import annotations

import random
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch.nn import functional as F
from transformers import AutoModelForMultipleChoice, TrainingArguments

from probekd.config import StudentConfig
from probekd.student.inputs import encode
from probekd.student.kinds.head import Head
from probekd.student.losses import UNLABELLED
from probekd.student.trainer import StudentTrainer, TrainingRow, collate, seeded
from probekd.tasks.base import Example, Task


def load(directory: Path) -> Head:
    task = Task(name="which", kind="multiple_choice", splits={})
    with seeded(0):
        return Head.load(directory, task, StudentConfig(model=str(directory)))


def training_rows(tokenizer: object, examples: list[Example]) -> list[TrainingRow]:
    encoded = encode(tokenizer, examples, "multiple_choice", 64)
    targets = [np.linspace(-1, 1, len(e.options)) for e in examples]
    answers = [UNLABELLED if e.answer is None else e.answer for e in examples]
    return [
        TrainingRow(encoded=tokens, target_logits=target, answer=answer)
        for tokens, target, answer in zip(encoded, targets, answers, strict=True)
    ]


def ragged(task: Task) -> list[Example]:
    """Rows of 2, 3 and 4 options, the last one of the pool."""
    labelled = {len(e.options): e for e in task.rows("train")}
    pool = {len(e.options): e for e in task.rows("unlabelled")}
    return [labelled[2], labelled[3], pool[4]]


def test_collate_copies_option_0_and_masks_it(tiny_bert: Path, which: Task) -> None:
    student = load(tiny_bert)
    rows = training_rows(student.tokenizer, ragged(which))
    batch = collate(student, rows)
    assert batch["input_ids"].shape[:2] == (3, 4)
    assert batch["present"].tolist() == [[True, True, False, False], [True, True, True, False], [True] * 4]
    assert torch.equal(batch["input_ids"][0, 2], batch["input_ids"][0, 0])
    assert torch.equal(batch["input_ids"][1, 3], batch["input_ids"][1, 0])
    assert torch.equal(torch.isinf(batch["target_logits"]), ~batch["present"])
    assert batch["target_logits"][1, :3].tolist() == [-1, 0, 1]
    assert batch["answers"].tolist() == [rows[0].answer, rows[1].answer, UNLABELLED]
    first = rows[2].encoded.sequences[3]["input_ids"]
    assert batch["input_ids"][2, 3, : len(first)].tolist() == list(first)


def test_loss_of_a_ragged_batch_is_the_mean_over_its_rows(tiny_bert: Path, which: Task, tmp_path: Path) -> None:
    student = load(tiny_bert)
    tokenizer, model = student.tokenizer, student.network.eval()
    rows = training_rows(tokenizer, ragged(which))
    arguments = TrainingArguments(output_dir=str(tmp_path), use_cpu=True, report_to="none", disable_tqdm=True)
    trainer = StudentTrainer(student, rows, alpha=0.3, temperature=2.0, args=arguments)
    with torch.no_grad():
        loss = trainer.compute_loss(model, collate(student, rows))
        by_row = []
        for row in rows:  # each row alone, without any padded option
            batch = tokenizer.pad([dict(s) for s in row.encoded.sequences], return_tensors="pt")
            logits = model(**{name: tensor[None] for name, tensor in batch.items()}).logits[0]
            target = torch.from_numpy(row.target_logits).float()
            soft = 4 * F.kl_div(F.log_softmax(logits / 2, -1), F.softmax(target / 2, -1), reduction="sum")
            labelled = row.answer != UNLABELLED
            by_row.append(0.3 * F.cross_entropy(logits, torch.tensor(row.answer)) + 0.7 * soft if labelled else soft)
    torch.testing.assert_close(loss, torch.stack(by_row).mean())


@pytest.mark.parametrize("steps", [1, 4])
def test_gradient_accumulation_averages_the_loss(tiny_bert: Path, which: Task, tmp_path: Path, steps: int) -> None:
    """Equal batches: the gradient of 4 accumulated steps is that of one, so the weights end up the same."""
    with seeded(0):
        model = AutoModelForMultipleChoice.from_pretrained(
            tiny_bert, attention_probs_dropout_prob=0.0, hidden_dropout_prob=0.0
        )
    student = replace(load(tiny_bert), network=model)
    rows = training_rows(student.tokenizer, ragged(which)[:1]) * 4
    expected = collate(student, rows[:1])
    arguments = TrainingArguments(
        output_dir=str(tmp_path),
        use_cpu=True,
        report_to="none",
        disable_tqdm=True,
        remove_unused_columns=False,
        per_device_train_batch_size=1,
        gradient_accumulation_steps=steps,
        max_steps=1,
        learning_rate=1.0,
        optim="sgd",
        max_grad_norm=0.0,
        save_strategy="no",
    )
    trainer = StudentTrainer(student, rows, alpha=0.3, temperature=2.0, args=arguments)
    before = model.classifier.weight.detach().clone()
    loss = trainer.compute_loss(model, expected)
    (gradient,) = torch.autograd.grad(loss, model.classifier.weight)
    trainer.train()
    torch.testing.assert_close(model.classifier.weight, before - gradient)


def test_seeded_leaves_the_generators_alone() -> None:
    def draws() -> tuple[float, float, float]:
        return random.random(), float(np.random.rand()), float(torch.rand(()))

    states = random.getstate(), np.random.get_state(), torch.get_rng_state()
    expected = draws()
    random.setstate(states[0])
    np.random.set_state(states[1])
    torch.set_rng_state(states[2])
    with seeded(7):
        inside = float(torch.rand(()))
        random.seed(1)
        np.random.seed(1)
    assert draws() == expected
    with seeded(7):
        assert float(torch.rand(())) == inside
