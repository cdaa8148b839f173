from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import nn
from transformers import TrainerState

from probekd.student.checkpoint import (
    Checkpoints,
    Loop,
    copy_of,
    put_back,
    read_loop,
    read_optimizer,
    read_weights,
    trained_tensors,
    write_checkpoint,
)
from probekd.student.history import Epoch


class Tied(nn.Module):
    """A frozen layer, a shared matrix, and a buffer that is saved."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Linear(4, 4, bias=False)
        self.frozen = nn.Linear(4, 4).requires_grad_(False)
        self.norm = nn.BatchNorm1d(4)
        self.head = nn.Linear(4, 4, bias=False)
        self.head.weight = self.embed.weight

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(self.norm(self.frozen(self.embed(x))))


def trained(steps: int) -> tuple[Tied, torch.optim.Optimizer, torch.optim.lr_scheduler.LambdaLR]:
    torch.manual_seed(0)
    model = Tied()
    optimizer = torch.optim.AdamW([{"params": [p for p in model.parameters() if p.requires_grad]}], lr=0.1)
    scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 1 / (1 + step))
    take(model, optimizer, scheduler, steps)
    return model, optimizer, scheduler


def take(model: Tied, optimizer: torch.optim.Optimizer, scheduler: object, steps: int) -> None:
    for _ in range(steps):
        optimizer.zero_grad()
        model(torch.randn(8, 4)).square().mean().backward()
        optimizer.step()
        scheduler.step()  # type: ignore[attr-defined]


@pytest.fixture
def loop() -> Loop:
    return Loop(
        history=(Epoch(epoch=1, steps=3, loss=0.1, log_loss=0.2, accuracy=0.3), Epoch(epoch=2, steps=6, loss=1 / 3)),
        tally=torch.tensor(1 / 7, dtype=torch.float64),
        generators={"cpu": torch.get_rng_state()[None]},
        best={"w": torch.ones(2)},
    )


def test_what_is_trained_is_neither_frozen_nor_twice_there() -> None:
    model, _, _ = trained(1)
    assert set(trained_tensors(model)) == {
        "embed.weight",
        "norm.weight",
        "norm.bias",
        "norm.running_mean",
        "norm.running_var",
        "norm.num_batches_tracked",
    }


def test_a_copy_stays_as_it_was_and_can_be_put_back() -> None:
    model, optimizer, scheduler = trained(1)
    kept = copy_of(trained_tensors(model))
    values = {name: tensor.clone() for name, tensor in kept.items()}
    take(model, optimizer, scheduler, 2)
    assert not torch.equal(model.embed.weight, kept["embed.weight"])
    put_back(model, kept)
    for name, tensor in trained_tensors(model).items():
        assert torch.equal(tensor, values[name])
    assert model.head.weight is model.embed.weight


def test_a_checkpoint_gives_back_every_bit(tmp_path: Path, loop: Loop) -> None:
    model, optimizer, scheduler = trained(3)
    checkpoints = Checkpoints(tmp_path / "place", "key", 0)
    assert checkpoints.find() is None
    write_checkpoint(
        checkpoints,
        weights=trained_tensors(model),
        optimizer=optimizer.state_dict(),
        scheduler=scheduler.state_dict(),
        loop=loop,
        trainer_state=TrainerState(global_step=3),
    )
    assert checkpoints.find() == tmp_path / "place"
    assert Checkpoints(tmp_path / "place", "another key", 0).find() is None
    other, its_optimizer, its_scheduler = trained(0)
    put_back(other, read_weights(tmp_path / "place"))
    state, schedule = read_optimizer(tmp_path / "place")
    its_optimizer.load_state_dict(state)
    its_scheduler.load_state_dict(schedule)
    found = read_loop(tmp_path / "place")
    assert (found.history, found.tally) == (loop.history, loop.tally)
    assert found.best is not None and torch.equal(found.best["w"], torch.ones(2))
    for one in ((model, optimizer, scheduler), (other, its_optimizer, its_scheduler)):
        torch.set_rng_state(found.generators["cpu"][0])
        take(*one, 3)
    for name, tensor in trained_tensors(model).items():
        assert torch.equal(tensor, trained_tensors(other)[name]), name
    assert scheduler.get_last_lr() == its_scheduler.get_last_lr()
