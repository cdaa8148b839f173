from __future__ import annotations

import json
import os
import random
import socket
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from steps import record, tiny_rows
from torch.nn import functional as F
from transformers import TrainingArguments

from probekd.config import HiddenConfig, StudentConfig
from probekd.errors import ConfigError
from probekd.student.fit import refuse_shards
from probekd.student.kinds.head import Head
from probekd.student.losses import DIVERGENCES
from probekd.student.objective import HiddenMatch, Objective
from probekd.student.order import step_order
from probekd.student.rows import TrainingRow, TrainingRows, collate
from probekd.student.trainer import StudentTrainer, seeded
from probekd.tasks.base import Task

STEPS = Path(__file__).parent.parent / "support" / "steps.py"


def load(directory: Path) -> Head:
    task = Task(name="which", kind="multiple_choice", splits={})
    with seeded(0):
        return Head.load(directory, task, StudentConfig(model=str(directory)))


def ragged(kind: Head) -> list[TrainingRow]:
    """Rows of 2, 3 and 4 options, the last one of the pool."""
    return tiny_rows(kind)[:3]


def test_collate_copies_option_0_and_masks_it(tiny_bert: Path) -> None:
    student = load(tiny_bert)
    rows = ragged(student)
    batch = collate(student, [(row, row is not rows[1]) for row in rows])
    assert batch["input_ids"].shape[:2] == (3, 4)
    assert batch["present"].tolist() == [[True, True, False, False], [True, True, True, False], [True] * 4]
    assert torch.equal(batch["input_ids"][0, 2], batch["input_ids"][0, 0])
    assert torch.equal(torch.isinf(batch["target_logits"]), ~batch["present"])
    np.testing.assert_allclose(batch["target_logits"][1, :3], rows[1].lesson.target_logits, rtol=1e-6)
    assert batch["answers"].tolist() == [row.lesson.answer for row in rows]
    assert batch["gold_weights"].tolist() == [0.5, 0.5, 0.0]
    assert batch["soft_weights"].tolist() == pytest.approx([row.lesson.weights.soft for row in rows])
    assert batch["counts"].tolist() == [1, 0, 1]
    first = rows[2].encoded.sequences[3]["input_ids"]
    assert batch["input_ids"][2, 3, : len(first)].tolist() == list(first)


def test_numbers_beyond_the_rows_are_copies_that_do_not_count(tiny_bert: Path) -> None:
    rows = ragged(load(tiny_bert))
    numbered = TrainingRows(rows)
    assert [numbered[i] for i in (0, 2, 3, 5)] == [(rows[0], True), (rows[2], True), (rows[0], False), (rows[2], False)]


def test_the_loss_of_a_step_is_the_mean_over_its_rows(tiny_bert: Path, tmp_path: Path) -> None:
    student = load(tiny_bert)
    rows = ragged(student)
    model = student.network.eval()
    objective = Objective(student, divergence=DIVERGENCES["forward_kl"], temperature=2.0)
    arguments = TrainingArguments(output_dir=str(tmp_path), use_cpu=True, report_to="none", disable_tqdm=True)
    trainer = StudentTrainer(objective, rows, args=arguments)
    with torch.no_grad():
        loss = trainer.compute_loss(objective, collate(student, [(row, True) for row in rows]))
        by_row = []
        for row in rows:  # each row alone, without any padded option
            batch = student.tokenizer.pad([dict(s) for s in row.encoded.sequences], return_tensors="pt")
            logits = model(**{name: tensor[None] for name, tensor in batch.items()}).logits[0]
            target = torch.from_numpy(row.lesson.target_logits).float()
            soft = 4 * F.kl_div(F.log_softmax(logits / 2, -1), F.softmax(target / 2, -1), reduction="sum")
            gold = F.cross_entropy(logits, torch.tensor(row.lesson.answer))
            by_row.append(row.lesson.weights.gold * gold + row.lesson.weights.soft * soft)
    torch.testing.assert_close(loss, torch.stack(by_row).mean())


@pytest.fixture(scope="module")
def whole(tiny_bert: Path) -> dict[str, torch.Tensor]:
    """Steps of 8 rows, the last one of an epoch of 5."""
    return record(tiny_bert, batch_size=8)


def same(found: dict[str, torch.Tensor], whole: dict[str, torch.Tensor]) -> None:
    torch.testing.assert_close(found["losses"], whole["losses"], rtol=1e-5, atol=0)
    torch.testing.assert_close(found["gradients"], whole["gradients"], rtol=1e-3, atol=2e-6)
    # The last one is the head's bias, which options share: its gradient is 0, and Adam makes steps of the rounding.
    torch.testing.assert_close(found["weights"][:-1], whole["weights"][:-1], rtol=1e-3, atol=2e-5)


def test_an_epochs_loss_is_the_mean_over_its_steps(tiny_bert: Path) -> None:
    found = record(tiny_bert, batch_size=8, learning_rate=1e-12)
    student = load(tiny_bert)
    rows = tiny_rows(student)
    student.network.eval()
    objective = Objective(student, divergence=DIVERGENCES["forward_kl"], temperature=2.0)
    with torch.no_grad():
        by_row = torch.cat([objective(collate(student, [(row, True)])) for row in rows])
    for epoch, loss in enumerate(found["losses"]):
        lengths = [row.encoded.tokens for row in rows]
        order = step_order(lengths, step_rows=8, multiple=1, seed=0, epoch=epoch)
        steps = [by_row[order[i : i + 8]].mean() for i in (0, 8, 16)]
        assert loss.item() == pytest.approx(float(torch.stack(steps).mean()), rel=1e-5)


@pytest.mark.parametrize("parts", [2, 4, 8])
def test_accumulated_parts_change_no_rows_weight(tiny_bert: Path, whole: dict[str, torch.Tensor], parts: int) -> None:
    """The last step's 5 rows are 4 + 1, 2 + 2 + 1 and 1 each: a mean over parts would weigh them unequally."""
    found = record(tiny_bert, batch_size=8, gradient_accumulation=parts)
    same(found, whole)


@pytest.mark.slow
def test_two_processes_train_as_one(tiny_bert: Path, whole: dict[str, torch.Tensor], tmp_path: Path) -> None:
    """21 rows: an epoch ends with a step of 5, dealt as 2 + 2 and 1 and a copy, which must not count."""
    # accelerate launch --cpu starts several processes through MPI only, and one where there is no MPI.
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
    options = {"batch_size": 8, "gradient_accumulation": 2}
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    command = [*launch, str(STEPS), str(tiny_bert), str(tmp_path), json.dumps(options)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    assert {f.name for f in tmp_path.iterdir()} == {"student", "steps.safetensors"}
    found = load_file(tmp_path / "steps.safetensors")
    assert found.pop("processes").item() == 2
    same(found, whole)


@pytest.mark.slow
def test_two_processes_of_mpi_train_as_one(tiny_bert: Path, whole: dict[str, torch.Tensor], tmp_path: Path) -> None:
    """What ``accelerate launch --num_processes 2 --cpu`` starts where there is an MPI, by the names that it gives."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    shared = {"OMP_NUM_THREADS": "1", "ACCELERATE_USE_CPU": "true", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    command = [sys.executable, str(STEPS), str(tiny_bert), str(tmp_path), json.dumps({"batch_size": 8})]
    started = []
    for rank in ("0", "1"):
        names = {"OMPI_COMM_WORLD_RANK": rank, "OMPI_COMM_WORLD_LOCAL_RANK": rank}
        sizes = {"OMPI_COMM_WORLD_SIZE": "2", "OMPI_COMM_WORLD_LOCAL_SIZE": "2"}
        environment = {**os.environ, **shared, **names, **sizes}
        started.append(subprocess.Popen(command, env=environment, stderr=subprocess.PIPE, text=True))
    for process in started:
        _, said = process.communicate(timeout=300)
        assert process.returncode == 0, said
    found = load_file(tmp_path / "steps.safetensors")
    assert found.pop("processes").item() == 2
    same(found, whole)


def test_a_step_that_cannot_be_divided_is_an_error(tiny_bert: Path) -> None:
    with pytest.raises(
        ConfigError, match=r"8 rows of a step .* 1 process\(es\) in 3 part\(s\); make it a multiple of 3"
    ):
        record(tiny_bert, batch_size=8, gradient_accumulation=3)


@pytest.mark.parametrize("sharded", ["is_fsdp_enabled", "is_deepspeed_enabled"])
def test_shards_of_a_student_are_refused(sharded: str) -> None:
    whole = {"is_fsdp_enabled": False, "is_deepspeed_enabled": False}
    refuse_shards(SimpleNamespace(**whole))
    with pytest.raises(ConfigError, match="launch without FSDP"):
        refuse_shards(SimpleNamespace(**{**whole, sharded: True}))


def test_a_tracker_that_is_not_installed_is_an_error(tiny_bert: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("probekd.student.fit.util.find_spec", lambda name: None)
    with pytest.raises(ConfigError, match=r"report_to: mlflow is not installed; pip install mlflow"):
        record(tiny_bert, report_to=("mlflow",))


@pytest.mark.parametrize("loss", ["cosine", "mse"])
def test_hidden_states_are_matched_option_by_option(tiny_bert: Path, loss: str) -> None:
    student = load(tiny_bert)
    network = student.network.eval()
    generator = np.random.default_rng(0)
    rows = [
        replace(
            row, lesson=replace(row.lesson, states=generator.normal(size=(row.encoded.options, 6)).astype("float32"))
        )
        for row in ragged(student)
    ]
    with seeded(1):
        match = HiddenMatch(student, 6, HiddenConfig(loss=loss, weight=0.7))
    objective = Objective(student, divergence=DIVERGENCES["forward_kl"], temperature=1.0, match=match)
    plain = Objective(student, divergence=DIVERGENCES["forward_kl"], temperature=1.0)
    with torch.no_grad():
        batch = collate(student, [(row, True) for row in rows])
        found = objective(batch) - plain(batch)
        for row, one in zip(rows, found, strict=True):
            distances = []
            for sequence, teacher in zip(row.encoded.sequences, row.lesson.states, strict=True):
                tokens = {name: torch.tensor([ids]) for name, ids in sequence.items()}
                said = match.projection(network.bert(**tokens).last_hidden_state[0].mean(dim=0))
                teacher = torch.from_numpy(teacher)
                if loss == "mse":
                    distances.append(F.mse_loss(said, teacher))
                else:
                    distances.append(1 - F.cosine_similarity(said, teacher, dim=0))
            torch.testing.assert_close(one, 0.7 * torch.stack(distances).mean(), rtol=1e-4, atol=1e-5)


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
