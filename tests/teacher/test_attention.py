"""Packed rows against the same rows read one by one by Transformers."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from tiny import CAUSAL, MORE_CAUSAL, NOT_PACKABLE
from transformers import AutoModelForCausalLM, AutoTokenizer, Phi3Config, Phi3ForCausalLM

from probekd.config import PromptConfig
from probekd.extraction import extract
from probekd.prompts import PromptEncoder
from probekd.tasks.base import Task
from probekd.teacher.attention import NAME, Packing, PrefixKeys
from probekd.teacher.batching import PackedBatch
from probekd.teacher.check import packable, paddable, states_of
from probekd.teacher.load import Teacher, load_teacher
from probekd.teacher.packing import Tree, branches_of, tree_of

TeacherOf = Callable[[str], Teacher]
SHARED = 9


def prompts_of(teacher: Teacher, task: Task, layout: str) -> list:
    encoder = PromptEncoder(teacher.tokenizer, task, encoder=teacher.encoder)
    return [encoder.encode(e, layout) for e in task.rows()]


@pytest.mark.parametrize("layout", ["listed", "branched"])
# Families with a soft cap or a window that hides some of the prefix copy it on every device.
@pytest.mark.parametrize(
    ("family", "prefix_keys"),
    [
        *((family, keys) for family in (*CAUSAL, *MORE_CAUSAL) for keys in ("none", "apart")),
        ("llama", "copied"),
        ("gpt2", "copied"),
    ],
)
def test_packed_states_are_those_of_each_sequence_alone(
    family: str, prefix_keys: str, layout: str, teacher_of: TeacherOf, choices: Task, monkeypatch: pytest.MonkeyPatch
) -> None:
    from dataclasses import replace

    from probekd.teacher import attention as module

    shared = 0 if prefix_keys == "none" else SHARED
    if prefix_keys == "copied":  # as on a device whose kernel does not say its sums
        monkeypatch.setattr(module, "_tells_sums", lambda q, v: False)
    teacher = teacher_of(family)
    # Longer than the windows of the families that have one, and shared by all rows.
    task = replace(choices, prompt=PromptConfig(instruction="Answer: the red cow eats grass, here is the sun."))
    rows = [branches_of(i, p) for i, p in enumerate(prompts_of(teacher, task, layout))]
    keys = PrefixKeys(length=shared) if shared else None
    prefix = None
    if keys is not None:
        tokens = rows[0][0].sequence.tokens[:shared]
        assert all(b.sequence.tokens[:shared] == tokens for branches in rows for b in branches)
        prefix = PackedBatch.prefix(tokens, teacher.device, keys)
    trees = [tree_of(branches) for branches in rows]
    trees = [Tree(skipped=shared, trunk=t.trunk - shared, branches=t.branches) for t in trees]
    batch = PackedBatch.rows(trees, teacher.device, keys)
    if layout == "branched":
        assert batch.shape[1] < sum(len(b.sequence.tokens) - shared for branches in rows for b in branches)
    (ours,) = states_of(teacher, [batch], teacher.depths, first=prefix)
    assert list(ours) == list(range(teacher.depths + 1))
    for number, member in enumerate(batch.members):
        tokens = member.sequence.tokens
        with torch.inference_mode():
            theirs = teacher.model(input_ids=torch.tensor([tokens]), output_hidden_states=True).hidden_states
        at = [batch.at(number, t) for t in range(shared, len(tokens))]
        for depth in ours:
            mine = ours[depth][0, at]
            if depth == teacher.depths and teacher.norm is not None:
                mine = teacher.norm(mine)
            reference = theirs[depth][0, shared:]
            error = (mine - reference).abs().max() / reference.abs().max()
            assert error <= 1e-4, (member.row, member.first, depth, float(error))


@pytest.mark.parametrize("family", [*CAUSAL, *MORE_CAUSAL])
@pytest.mark.parametrize("layout", ["listed", "branched"])
def test_the_families_are_found_packable(family: str, layout: str, teacher_of: TeacherOf, choices: Task) -> None:
    teacher = teacher_of(family)
    before = teacher.attention
    assert packable(teacher, prompts_of(teacher, choices, layout)) == ""
    assert teacher.attention == before != NAME


@pytest.mark.parametrize("family", NOT_PACKABLE)
def test_a_model_that_does_not_listen_is_found_out(family: str, teacher_of: TeacherOf, choices: Task) -> None:
    teacher = teacher_of(family)
    before = teacher.attention
    assert "cannot be packed" in (why := packable(teacher, prompts_of(teacher, choices, "branched"))) or "attend" in why
    assert teacher.attention == before


@pytest.mark.parametrize(
    ("family", "why"), [("bert", "an encoder reads both ways"), ("bloom", "BloomModel"), ("llama", "")]
)
def test_a_fallback_is_said_in_the_log_and_the_manifest(
    family: str, why: str, teacher_of: TeacherOf, choices: Task, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (store,) = extract(teacher_of(family), choices, splits=["train"], layouts=["branched"], cache=tmp_path).stores
    reason = store.manifest["pass"]["reason"]
    told = "choices, split train, branched: sequences are read apart, in padded batches, and nothing they share is computed once"
    assert caplog.messages == ([f"{told}: {reason}"] if why else [])
    assert why in reason and bool(reason) is bool(why)
    caplog.clear()
    extract(teacher_of(family), choices, splits=["train"], layouts=["branched"], cache=tmp_path)
    assert not caplog.messages, "what is there already is not read"


@pytest.mark.parametrize("family", [*NOT_PACKABLE, "bert", "opt"])
def test_rows_may_be_padded(family: str, teacher_of: TeacherOf, choices: Task) -> None:
    teacher = teacher_of(family)
    assert paddable(teacher, prompts_of(teacher, choices, "branched")) == ""


def test_a_model_that_scales_by_the_longest_row_is_read_a_row_at_a_time(
    model_dir: Callable[[str], Path], choices: Task, tmp_path: Path
) -> None:
    """LongRoPE: short factors up to a length, long ones beyond, for all of a batch."""
    tokenizer = AutoTokenizer.from_pretrained(model_dir("llama"))
    sizes = {"hidden_size": 32, "intermediate_size": 48, "num_attention_heads": 4, "num_hidden_layers": 2}
    scale = {"rope_type": "longrope", "short_factor": [1.0] * 4, "long_factor": [4.0] * 4, "rope_theta": 10000.0}
    config = Phi3Config(
        vocab_size=len(tokenizer),
        pad_token_id=0,
        bos_token_id=0,
        eos_token_id=0,
        max_position_embeddings=256,
        original_max_position_embeddings=36,
        rope_parameters={**scale, "original_max_position_embeddings": 36},
        initializer_range=0.2,
        **sizes,
    )
    Phi3ForCausalLM(config).save_pretrained(tmp_path / "phi3")
    tokenizer.save_pretrained(tmp_path / "phi3")
    teacher = load_teacher(tmp_path / "phi3")
    prompts = prompts_of(teacher, choices, "listed")
    lengths = [len(p.sequences[0].tokens) for p in prompts]
    assert min(lengths) < 36 < max(lengths), lengths
    assert "beside a longer one" in paddable(teacher, prompts)
    states = extract(teacher, choices, layouts=["listed"], cache=tmp_path / "cache")
    plan = states.stores[0].manifest["pass"]
    assert plan["batch_tokens"] == 1 and "one sequence at a time, since a row's states differ" in plan["reason"]
    plain = AutoModelForCausalLM.from_pretrained(tmp_path / "phi3").eval()
    for prompt in prompts:
        (sequence,) = prompt.sequences
        with torch.inference_mode():
            out = plain(input_ids=torch.tensor([sequence.tokens]), output_hidden_states=True).hidden_states[1]
        found = states.read("listed", "answer", 1, [prompt.id])[0]
        np.testing.assert_allclose(found, out[0, sequence.answer], atol=1e-4)


def test_an_encoder_is_not_packed(teacher_of: TeacherOf, choices: Task) -> None:
    teacher = teacher_of("bert")
    assert "both ways" in packable(teacher, prompts_of(teacher, choices, "listed"))


@pytest.mark.parametrize("broken", ["position", "branch", "prefix", "window"])
def test_the_check_finds_what_is_broken(
    broken: str, teacher_of: TeacherOf, choices: Task, monkeypatch: pytest.MonkeyPatch
) -> None:
    from probekd.teacher import attention as module

    teacher = teacher_of("gemma3" if broken == "window" else "llama")
    prompts = prompts_of(teacher, choices, "branched")
    if broken == "position":
        places = module._places

        def shifted(tree: Tree) -> tuple[list[int], list[int]]:
            positions, branch = places(tree)
            return [p + (b > 1) for p, b in zip(positions, branch, strict=True)], branch

        monkeypatch.setattr(module, "_places", shifted)
    elif broken == "branch":
        places = module._places
        monkeypatch.setattr(module, "_places", lambda tree: (places(tree)[0], [0] * len(places(tree)[0])))
    elif broken == "prefix":
        attend = module._beside_prefix
        monkeypatch.setattr(module, "_beside_prefix", lambda *given: attend(*given) * 1.01)
    else:
        mask = module.Packing.mask
        monkeypatch.setattr(module.Packing, "mask", lambda self, window, *rest: mask(self, None, *rest))
    assert "does not attend as it is told" in packable(teacher, prompts)


def test_a_prefix_of_all_but_the_read_tokens_is_tried(
    llama: Teacher, choices: Task, monkeypatch: pytest.MonkeyPatch
) -> None:
    made: list[int] = []
    prefix = PackedBatch.prefix
    monkeypatch.setattr(
        PackedBatch, "prefix", lambda tokens, *rest: (made.append(len(tokens)), prefix(tokens, *rest))[1]
    )
    packable(llama, prompts_of(llama, choices, "branched"))
    assert made and made[0] >= 1


def test_a_packing_follows_blocks_to_another_device(llama: Teacher, choices: Task) -> None:
    """There is no second device here but ``meta``, on which nothing is computed: that all of it is there is what is seen."""
    trees = [tree_of(branches_of(i, p)) for i, p in enumerate(prompts_of(llama, choices, "branched"))]
    packing = Packing(trees, torch.device("cpu"))
    meta = torch.device("meta")
    there = packing.on(meta)
    assert packing.on(torch.device("cpu")) is packing and packing.on(meta) is there
    tensors = [value for value in vars(there).values() if isinstance(value, torch.Tensor)]
    assert len(tensors) == sum(isinstance(value, torch.Tensor) for value in vars(packing).values()) > 0
    assert all(tensor.device == meta for tensor in tensors)
    here = packing.mask(None, torch.float32, 0)
    mask = there.mask(None, torch.float32, 0)
    assert here is not None and mask is not None and mask.device == meta and here.device.type == "cpu"
    assert mask.shape == here.shape
    packing.slim()
    assert not packing.masks and packing.on(meta) is not there


def test_the_models_on_disk_are_not_changed(model_dir: Callable[[str], Path], llama: Teacher, choices: Task) -> None:
    packable(llama, prompts_of(llama, choices, "listed"))
    assert llama.body.config._attn_implementation == "sdpa"
