from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from probekd.teacher.blocks import depth_of_every_kind
from probekd.teacher.load import Teacher


class Block(nn.Module):
    def __init__(self, number: int, mixer: nn.Module, **told: Any) -> None:
        super().__init__()
        self.layer_idx, self.mixer = number, mixer
        for name, value in told.items():
            setattr(self.mixer, name, value)


def stack(*mixers: nn.Module, **told: list[Any]) -> list[Block]:
    return [Block(i, m, **{k: v[i] for k, v in told.items()}) for i, m in enumerate(mixers)]


def linear() -> nn.Module:
    return nn.Linear(2, 2)


def test_blocks_that_differ_in_their_number_alone_are_of_one_kind() -> None:
    assert depth_of_every_kind(stack(linear(), linear(), linear()), ()) == 1


def test_another_class_inside_is_another_kind() -> None:
    assert depth_of_every_kind(stack(linear(), linear(), nn.GRU(2, 2), linear()), ()) == 3


@pytest.mark.parametrize(
    ("name", "values"), [("window", [None, 4, None]), ("is_shared", [False, True, False]), ("mode", ["a", "b", "a"])]
)
def test_another_plain_attribute_is_another_kind(name: str, values: list[Any]) -> None:
    assert depth_of_every_kind(stack(linear(), linear(), linear(), **{name: values}), ()) == 2


def test_the_config_may_tell_blocks_apart_that_look_alike() -> None:
    assert depth_of_every_kind(stack(linear(), linear(), linear()), ["near", "near", "far"]) == 3


@pytest.mark.parametrize(("family", "depth"), [("llama", 1), ("gpt2", 1), ("gpt_neo", 2)])
def test_of_real_models(family: str, depth: int, teacher_of: Callable[[str], Teacher]) -> None:
    """GPT-Neo's blocks attend globally and locally in turn, which its config has no ``layer_types`` for."""
    teacher = teacher_of(family)
    types = getattr(teacher.body.config, "layer_types", None) or ()
    assert depth_of_every_kind(teacher.blocks, types) == depth


def test_windows_of_gemma3_are_met(model_dir: Callable[[str], Path], teacher_of: Callable[[str], Teacher]) -> None:
    teacher = teacher_of("gemma3")
    types = teacher.body.config.layer_types
    first = {kind: types.index(kind) for kind in set(types)}
    assert len(first) == 2, "the tiny model has local and global attention"
    assert depth_of_every_kind(teacher.blocks, types) == max(first.values()) + 1


def test_weights_need_not_be_in_memory() -> None:
    with torch.device("meta"):
        blocks = stack(linear(), nn.GRU(2, 2))
    assert depth_of_every_kind(blocks, ()) == 2
