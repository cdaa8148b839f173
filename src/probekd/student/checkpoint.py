"""Checkpoints of a training: everything that decides its next step, as safetensors and JSON.

Transformers would pickle the optimizer, the generators and its own arguments.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from probekd.files import read_json, replacing, save_tensors, write_json
from probekd.student.history import Epoch

KEY_FILE = "key.json"
STATE_FILE = "trainer_state.json"  # as Trainer looks for it
WEIGHTS_FILE = "weights.safetensors"
BEST_FILE = "best.safetensors"
OPTIMIZER_FILE = "optimizer.safetensors"
LOOP_FILE = "loop.safetensors"
SCHEDULE_FILE = "schedule.json"


@dataclass
class Checkpoints:
    """Where the checkpoint of one training lies, and when it is time for the next.

    Attributes:
        directory: There is one checkpoint in it, or none.
        key: Hash of everything that the training depends on; a checkpoint with another one is another training's.
        seconds: Time between checkpoints.
    """

    directory: Path
    key: str
    seconds: float
    _last: float = field(default_factory=time.monotonic)

    def due(self) -> bool:
        """Whether it is time."""
        return time.monotonic() - self._last >= self.seconds

    def find(self) -> Path | None:
        """The checkpoint, if there is one of this training."""
        path = self.directory / KEY_FILE
        return self.directory if path.is_file() and read_json(path) == self.key else None

    def written(self) -> None:
        """Count the time from now."""
        self._last = time.monotonic()


def trained_tensors(module: nn.Module) -> dict[str, Tensor]:
    """What training changes: parameters with a gradient (shared ones once) and buffers that are saved."""
    frozen = {name for name, p in module.named_parameters(remove_duplicate=False) if not p.requires_grad}
    names = {name for name, _ in module.named_parameters()}
    shared = {name for name, _ in module.named_parameters(remove_duplicate=False)} - names
    state = module.state_dict()
    return {name: tensor.detach() for name, tensor in state.items() if name not in frozen and name not in shared}


def copy_of(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """A copy in main memory that training does not change."""
    return {name: tensor.to("cpu", copy=True) for name, tensor in tensors.items()}


def put_back(module: nn.Module, tensors: Mapping[str, Tensor]) -> None:
    """Write ``trained_tensors`` back into their module."""
    places = trained_tensors(module)
    assert places.keys() == tensors.keys(), "the tensors are of another model"
    with torch.no_grad():
        for name, place in places.items():
            place.copy_(tensors[name])


def split_optimizer(state: Mapping[str, Any]) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """An optimizer's ``state_dict`` as tensors, by ``"<parameter>.<name>"``, and the rest, which JSON can hold."""
    tensors = {f"{number}.{name}": value for number, values in state["state"].items() for name, value in values.items()}
    return tensors, {"param_groups": state["param_groups"]}


def join_optimizer(tensors: Mapping[str, Tensor], rest: Mapping[str, Any]) -> dict[str, Any]:
    """The ``state_dict`` that ``split_optimizer`` took apart."""
    state: dict[int, dict[str, Tensor]] = {}
    for key, tensor in tensors.items():
        number, _, name = key.partition(".")
        state.setdefault(int(number), {})[name] = tensor
    return {"state": state, **rest}


@dataclass(frozen=True, kw_only=True)
class Loop:
    """What the loop itself remembers.

    Attributes:
        history: Epochs that are over.
        tally: Sum of the losses of the epoch under way, a float64 scalar.
        generators: States of torch's generators by device type, each (processes, bytes).
        best: Weights of the best epoch so far; None = none is kept.
    """

    history: tuple[Epoch, ...]
    tally: Tensor
    generators: Mapping[str, Tensor]
    best: Mapping[str, Tensor] | None


def write_checkpoint(
    checkpoints: Checkpoints,
    *,
    weights: Mapping[str, Tensor],
    optimizer: Mapping[str, Any],
    scheduler: Mapping[str, Any],
    loop: Loop,
    trainer_state: Any,
) -> None:
    """Replace the checkpoint, whole or not at all.

    Args:
        checkpoints: Where it goes.
        weights: ``trained_tensors`` of what is trained.
        optimizer: Its ``state_dict``.
        scheduler: Its ``state_dict``.
        loop: The rest of what is going on.
        trainer_state: Trainer's ``TrainerState``.
    """
    tensors, rest = split_optimizer(optimizer)
    with replacing(checkpoints.directory) as unfinished:
        unfinished.mkdir(parents=True)
        save_tensors(weights, unfinished / WEIGHTS_FILE, {})
        save_tensors(tensors, unfinished / OPTIMIZER_FILE, {})
        if loop.best is not None:
            save_tensors(loop.best, unfinished / BEST_FILE, {})
        save_tensors({"tally": loop.tally, **loop.generators}, unfinished / LOOP_FILE, {})
        history = [asdict(epoch) for epoch in loop.history]
        write_json(unfinished / SCHEDULE_FILE, {"optimizer": rest, "scheduler": dict(scheduler), "history": history})
        trainer_state.save_to_json(str(unfinished / STATE_FILE))
        write_json(unfinished / KEY_FILE, checkpoints.key)
    checkpoints.written()


def read_weights(directory: Path) -> dict[str, Tensor]:
    """Weights at the checkpoint."""
    return load_file(directory / WEIGHTS_FILE)


def read_optimizer(directory: Path) -> tuple[dict[str, Any], dict[str, Any]]:
    """``state_dict`` of the optimizer and of the scheduler."""
    rest = read_json(directory / SCHEDULE_FILE)
    return join_optimizer(load_file(directory / OPTIMIZER_FILE), rest["optimizer"]), rest["scheduler"]


def read_loop(directory: Path) -> Loop:
    """What the loop remembered."""
    tensors = load_file(directory / LOOP_FILE)
    best = directory / BEST_FILE
    return Loop(
        history=tuple(Epoch(**values) for values in read_json(directory / SCHEDULE_FILE)["history"]),
        tally=tensors.pop("tally"),
        generators=tensors,
        best=load_file(best) if best.is_file() else None,
    )


def generator_states(accelerator: Any) -> dict[str, Tensor]:
    """States of torch's generators in every process, each (processes, bytes); every process must call this."""
    states = {"cpu": torch.get_rng_state()}
    if torch.cuda.is_available():
        states["cuda"] = torch.cuda.get_rng_state()
    return {name: accelerator.gather(state[None].to(accelerator.device)).cpu() for name, state in states.items()}


def set_generators(states: Mapping[str, Tensor], process: int) -> None:
    """Put this process's generators back."""
    torch.set_rng_state(states["cpu"][process])
    if "cuda" in states:
        torch.cuda.set_rng_state(states["cuda"][process])
