"""Layers in oneDNN's order against plain ones, and against models as Transformers loads them."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from tiny import FAMILIES, MORE_CAUSAL, NOT_PACKABLE
from torch import nn
from torch.nn.functional import linear
from transformers import AutoModel

from probekd.config import TeacherConfig
from probekd.teacher.linears import PackedLinear, make_packable, pack, product
from probekd.teacher.load import load_teacher

ModelDir = Callable[[str], Path]

pytestmark = pytest.mark.skipif(not torch.backends.mkldnn.is_available(), reason="PyTorch was built without oneDNN")


def packed_weights(module: nn.Module) -> set[str]:
    return {name for name, weight in module.named_parameters() if weight.is_mkldnn}


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("shape", [(1,), (3, 1), (2, 7), (1, 700), (513,)])
def test_a_packed_layer_gives_what_the_plain_one_does(shape: tuple[int, ...], bias: bool) -> None:
    torch.manual_seed(0)
    block = nn.ModuleDict({"inner": nn.Sequential(nn.Linear(72, 40, bias=bias), nn.ReLU())}).eval()
    plain = block["inner"][0]
    weight, offset = plain.weight.detach().clone(), None if plain.bias is None else plain.bias.detach().clone()
    x = torch.randn(*shape, 72)
    with torch.inference_mode():
        make_packable([block])
        torch.testing.assert_close(block["inner"][0](x), linear(x, weight, offset), rtol=0, atol=0)
        pack(block)
        assert packed_weights(block) == {"inner.0.weight"}
        torch.testing.assert_close(block["inner"][0](x), linear(x, weight, offset))
        # A view that is not contiguous, as attention hands them on.
        turned = torch.randn(72, 5).T
        torch.testing.assert_close(block["inner"][0](turned), linear(turned, weight, offset))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
@pytest.mark.parametrize("shape", [(1, 72), (2, 7, 72), (300, 72)])
def test_a_product_with_a_plain_weight_or_a_slice_of_one(shape: tuple[int, ...], dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    x, weight = torch.randn(shape).to(dtype), torch.randn(90, 72).to(dtype)
    with torch.inference_mode():
        for rows in (weight, weight[17:60], weight[[4, 80, 4]]):
            found = product(x, rows)
            assert found.dtype == dtype
            torch.testing.assert_close(found, x @ rows.T)


def test_what_a_family_makes_of_the_layer_is_left_alone() -> None:
    class Doubled(nn.Linear):
        def forward(self, input: torch.Tensor) -> torch.Tensor:
            return 2 * super().forward(input)

    block = nn.Sequential(Doubled(4, 4), nn.Linear(4, 4))
    make_packable([block])
    pack(block)
    assert packed_weights(block) == {"1.weight"} and type(block[0]) is Doubled


@pytest.mark.parametrize("memory", ["auto", "streamed"])
@pytest.mark.parametrize("family", [*FAMILIES, *MORE_CAUSAL, *NOT_PACKABLE])
def test_states_are_those_of_the_model_as_transformers_loads_it(family: str, memory: str, model_dir: ModelDir) -> None:
    teacher = load_teacher(TeacherConfig(model=str(model_dir(family)), memory=memory))  # type: ignore[arg-type]
    ids = torch.tensor([[5, 9, 2, 17, 30, 4, 8, 21]])
    plain = AutoModel.from_pretrained(model_dir(family), dtype=torch.float32).eval()
    seen: list[torch.Tensor] = []
    for number, block in enumerate(teacher.blocks):
        if teacher.weights is not None:
            assert all(p.is_meta for p in block.parameters())
            teacher.weights.load(block, number)
        # GPT-2's blocks hold no plain layers.
        layers = {f"{n}.weight" for n, m in block.named_modules() if isinstance(m, nn.Linear)}
        assert packed_weights(block) == layers
        block.register_forward_hook(lambda *a: seen.append(a[-1][0] if isinstance(a[-1], tuple) else a[-1]))
    with torch.inference_mode():
        teacher.body(input_ids=ids)
        theirs = plain(input_ids=ids, output_hidden_states=True).hidden_states
    assert len(seen) == len(theirs) - 1
    # The last of theirs is after the final norm.
    for depth, state in enumerate(seen[:-1], start=1):
        error = (state.reshape(theirs[depth].shape) - theirs[depth]).norm() / theirs[depth].norm()
        assert error < 1e-5, depth


def test_other_types_and_models_without_the_order_keep_their_weights(
    model_dir: ModelDir, monkeypatch: pytest.MonkeyPatch
) -> None:
    half = load_teacher(TeacherConfig(model=str(model_dir("llama")), dtype="bfloat16"))
    assert not packed_weights(half.model)
    assert any(isinstance(m, PackedLinear) for m in load_teacher(model_dir("llama")).model.modules())
    monkeypatch.setattr(torch.backends.mkldnn, "is_available", lambda: False)
    plain = load_teacher(model_dir("llama"))
    assert not packed_weights(plain.model) and not any(isinstance(m, PackedLinear) for m in plain.model.modules())
