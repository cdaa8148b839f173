"""A streamed teacher against the same teacher in memory, and what a killed pass leaves."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from tiny import CAUSAL, FAMILIES, MORE_CAUSAL, NOT_PACKABLE
from transformers import AutoModelForCausalLM

from probekd.config import PromptConfig, TeacherConfig
from probekd.errors import ModelError
from probekd.extraction import extract
from probekd.extraction import shards as shards_module
from probekd.extraction import streaming as streaming_module
from probekd.prompts import PromptEncoder
from probekd.states import States
from probekd.tasks.base import Task
from probekd.teacher import streamed as streamed_module
from probekd.teacher.batching import PackedBatch
from probekd.teacher.check import check_pass
from probekd.teacher.load import Teacher, load_teacher
from probekd.teacher.memory import weight_bytes

ModelDir = Callable[[str], Path]
TeacherOf = Callable[[str], Teacher]


def streamed(directory: Path, **options: object) -> Teacher:
    return load_teacher(TeacherConfig(model=str(directory), memory="streamed", batch_tokens=200, **options))


def expect_same(ours: States, theirs: States, task: Task) -> None:
    ids = [e.id for e in task.rows("train")]
    assert ours.layouts == theirs.layouts
    for layout in theirs.layouts:
        for position in theirs.positions(layout):
            for depth in theirs.depths(layout):
                a, b = (s.read(layout, position, depth, ids) for s in (ours, theirs))
                assert np.abs(a - b).max() <= 1e-4 * np.abs(b).max(), (layout, position, depth)
        for name in theirs.outputs(layout):
            for a, b in zip(ours.column(layout, name, ids), theirs.column(layout, name, ids), strict=True):
                np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-4)
        assert ours.outputs(layout) == theirs.outputs(layout)


@pytest.mark.parametrize("family", [*FAMILIES, *MORE_CAUSAL, *NOT_PACKABLE])
def test_streamed_states_are_those_of_the_model_in_memory(
    family: str, teacher_of: TeacherOf, model_dir: ModelDir, choices: Task, tmp_path: Path
) -> None:
    task = replace(choices, prompt=PromptConfig(instruction="the red cow eats grass " * 30))
    task = replace(task, splits={"train": task.rows()})
    ours = extract(streamed(model_dir(family)), task, cache=tmp_path / "streamed")
    theirs = extract(teacher_of(family), task, cache=tmp_path / "whole")
    expect_same(ours, theirs, task)
    assert [s.directory.name for s in ours.stores] == [s.directory.name for s in theirs.stores]
    passes = [s.manifest["pass"] for s in ours.stores]
    assert {p["memory"] for p in passes} == {"streamed"}
    assert {p["packed"] for p in passes} == {family in (*CAUSAL, *MORE_CAUSAL)}
    assert all(bool(p["reason"]) != p["packed"] for p in passes)


def test_a_streamed_block_is_in_memory_only_while_it_runs(model_dir: ModelDir, choices: Task) -> None:
    teacher = streamed(model_dir("llama"))
    held: list[list[int]] = []

    def look(*_: object) -> None:
        held.append([i for i, b in enumerate(teacher.blocks) if next(b.parameters()).device.type != "meta"])

    for block in teacher.blocks:
        block.register_forward_hook(look)
    extract(teacher, choices, splits=["train"], layouts=["listed"])
    assert held and all(len(h) == 1 for h in held[: len(held)] if h)
    assert all(p.device.type == "meta" for b in teacher.blocks for p in b.parameters())


@pytest.fixture
def unchecked(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without the check that runs a block or two before a pass, which is not the pass."""
    monkeypatch.setattr("probekd.teacher.check.check_pass", lambda *_: None)


@pytest.mark.usefixtures("unchecked")
def test_each_weight_is_read_once_a_pass(model_dir: ModelDir, choices: Task, monkeypatch: pytest.MonkeyPatch) -> None:
    teacher = streamed(model_dir("llama"))
    assert teacher.weights is not None
    read: list[str] = []

    class Counting:
        def __init__(self, inner: object) -> None:
            self.inner = inner

        def __getitem__(self, name: str) -> object:
            read.append(name)
            return self.inner[name]

    counted = replace(teacher, weights=replace(teacher.weights, tensors=Counting(teacher.weights.tensors)))
    monkeypatch.setattr("probekd.extraction.job.ROWS_AT_ONCE", 1)
    monkeypatch.setattr("probekd.teacher.check.packable", lambda *_: "")
    states = extract(counted, choices, splits=["train"], layouts=["branched"])
    assert len(states.stores[0].manifest["shards"]) == 4
    assert len(read) == len(set(read)) == 27


@pytest.mark.usefixtures("unchecked")
def test_a_killed_pass_goes_on_with_the_block_it_was_at(
    model_dir: ModelDir, choices: Task, monkeypatch: pytest.MonkeyPatch, cache_directory: Path
) -> None:
    task = replace(choices, splits={"train": choices.rows()})
    teacher = streamed(model_dir("gpt2"))
    expected = extract(teacher, task, layouts=["branched"], cache=cache_directory / "undisturbed").stores[0]
    one, ran = streamed_module._one, []

    def killed(teacher: Teacher, batch: object, depth: int, *rest: object) -> None:
        if depth == 2 and 2 not in ran[-1:]:
            ran.append(depth)
            raise KeyboardInterrupt
        ran.append(depth)
        one(teacher, batch, depth, *rest)

    monkeypatch.setattr(streamed_module, "_one", killed)
    with pytest.raises(KeyboardInterrupt):
        extract(teacher, task, layouts=["branched"])
    before = len(ran)
    assert set(ran) == {0, 1, 2}
    store = extract(teacher, task, layouts=["branched"]).stores[0]
    assert set(ran[before:]) == {2, 3}
    assert sorted(p.name for p in store.directory.iterdir()) == [
        "index.parquet",
        "manifest.json",
        "shard-00000.safetensors",
    ]
    for name in ("index.parquet", "shard-00000.safetensors"):
        assert (store.directory / name).read_bytes() == (expected.directory / name).read_bytes()


@pytest.mark.parametrize("before", [True, False])
@pytest.mark.parametrize("moment", range(7))
def test_a_kill_while_anything_is_written_loses_nothing(
    moment: int,
    before: bool,
    model_dir: ModelDir,
    choices: Task,
    monkeypatch: pytest.MonkeyPatch,
    cache_directory: Path,
) -> None:
    """Four depths and three shards are written: the kill comes before or after the one numbered ``moment``."""
    monkeypatch.setattr("probekd.extraction.job.ROWS_AT_ONCE", 2)
    task = replace(choices, splits={"train": choices.rows()})
    teacher = streamed(model_dir("llama"))
    expected = extract(teacher, task, layouts=["branched"], cache=cache_directory / "undisturbed").stores[0]
    calls, written = [], []

    def killing(write: Callable[..., None]) -> Callable[..., None]:
        def killed(path: Path, *rest: object) -> None:
            calls.append(path.name)
            if before and len(calls) == moment + 1:
                raise KeyboardInterrupt
            write(path, *rest)
            written.append(path.name)
            if len(calls) == moment + 1:
                raise KeyboardInterrupt

        return killed

    for module, name in ((shards_module, "write"), (streaming_module, "_write_depth")):
        monkeypatch.setattr(module, name, killing(getattr(module, name)))
    with pytest.raises(KeyboardInterrupt):
        extract(teacher, task, layouts=["branched"])
    store = extract(teacher, task, layouts=["branched"]).stores[0]
    assert len(store.manifest["shards"]) == 3
    cut = [name for name in written if name.startswith("shard-")]
    assert len(cut) == len(set(cut)) == 3
    assert len(written) <= 8, "more than the depth in flight was read again"
    assert not list(store.directory.glob(".*"))
    for file in ("index.parquet", *sorted(cut)):
        assert (store.directory / file).read_bytes() == (expected.directory / file).read_bytes()


def test_many_rows_share_a_pass_only_as_far_as_a_depth_of_them_can_be_held(
    model_dir: ModelDir, choices: Task, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr("probekd.extraction.job.ROWS_AT_ONCE", 1)
    task = replace(choices, splits={"train": choices.rows()})
    whole = extract(streamed(model_dir("llama")), task, layouts=["listed"], cache=tmp_path / "one")
    monkeypatch.setattr(streaming_module, "DEPTH_BYTES", 2 * 11 * 32 * 4)
    parts = extract(streamed(model_dir("llama")), task, layouts=["listed"], cache=tmp_path / "many")
    for a, b in zip(whole.stores[0].manifest["shards"], parts.stores[0].manifest["shards"], strict=True):
        first, second = (load_file(s.stores[0].directory / f["file"]) for s, f in ((whole, a), (parts, b)))
        for name, states in first.items():
            np.testing.assert_allclose(second[name], states, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("outputs", [True, False])
@pytest.mark.parametrize("depths", [(2,), (0, 3), (1, 2)])
@pytest.mark.parametrize("family", ["llama", "gpt2"])
def test_some_depths_alone_are_read_as_with_the_model_in_memory(
    family: str,
    depths: tuple[int, ...],
    outputs: bool,
    model_dir: ModelDir,
    teacher_of: TeacherOf,
    choices: Task,
    tmp_path: Path,
) -> None:
    """What every pass over a pool asks for."""
    task = replace(choices, splits={"train": choices.rows()})
    ours, theirs = (
        extract(teacher, task, depths=depths, outputs=outputs, cache=tmp_path / name)
        for name, teacher in (("streamed", streamed(model_dir(family))), ("whole", teacher_of(family)))
    )
    assert tuple(ours.depths("listed")) == depths
    expect_same(ours, theirs, task)


@pytest.mark.parametrize("family", ["llama", "gemma3", "bert"])
def test_a_streamed_teacher_is_checked_too(family: str, model_dir: ModelDir, choices: Task) -> None:
    teacher = streamed(model_dir(family))
    prompt = PromptEncoder(teacher.tokenizer, choices, encoder=teacher.encoder).encode(choices.rows()[0], "listed")
    check_pass(teacher, prompt)
    assert all(p.device.type == "meta" for b in teacher.blocks for p in b.parameters())
    with pytest.raises(ModelError, match=r"our state at depth \d differs.* when it is streamed"):
        check_pass(replace(teacher, norm=torch.nn.LayerNorm(teacher.width)), prompt)
    if not teacher.encoder:
        with pytest.raises(ModelError, match="our logits differs"):
            check_pass(replace(teacher, logit_scale=2.0), prompt)


def test_memory_between_blocks_does_not_grow_with_masks(
    model_dir: ModelDir, choices: Task, monkeypatch: pytest.MonkeyPatch
) -> None:
    held: list[int] = []
    one = streamed_module._one
    batches: list[Any] = []

    def looked(teacher: Teacher, batch: Any, depth: int, *rest: object) -> None:
        held.append(sum(len(b._packing.masks) for b in batches if isinstance(b, PackedBatch)))
        one(teacher, batch, depth, *rest)
        batches.append(batch)

    monkeypatch.setattr(streamed_module, "_one", looked)
    extract(streamed(model_dir("llama")), choices, splits=["train"], layouts=["branched"])
    assert sum(isinstance(b, PackedBatch) for b in batches) > 4
    assert not any(held)


def test_a_pass_has_no_more_tokens_than_lie_between_its_blocks(
    model_dir: ModelDir, choices: Task, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr("probekd.extraction.job.ROWS_AT_ONCE", 1)
    monkeypatch.setattr(streaming_module, "PASS_TOKENS", 60)
    seen: list[list[int]] = []
    passes = streaming_module.passes
    monkeypatch.setattr(streaming_module, "passes", lambda job: seen.append(passes(job)) or passes(job))
    task = replace(choices, splits={"train": choices.rows()})
    store = extract(streamed(model_dir("llama")), task, layouts=["listed"], cache=tmp_path / "many").stores[0]
    tokens = store.index["num_tokens"]
    assert len(seen[0]) > 1
    assert all(len(some) == 1 or sum(tokens[n] for n in some) <= 60 for some in seen[0])


def test_streaming_is_chosen_when_the_weights_exceed_the_free_memory(
    model_dir: ModelDir, monkeypatch: pytest.MonkeyPatch
) -> None:
    directory = model_dir("llama")
    weights = load_file(directory / "model.safetensors")
    assert weight_bytes(directory, "float32") == sum(w.numel() * 4 for w in weights.values())
    assert weight_bytes(directory, "bfloat16") * 2 == weight_bytes(directory, "float32")
    for free, expected in ((10, True), (10**9, False)):
        monkeypatch.setattr("probekd.teacher.memory.free_memory", lambda _, free=free: free)
        assert (load_teacher(directory).weights is not None) is expected
        assert load_teacher(TeacherConfig(model=str(directory), memory="whole")).weights is None


def test_bfloat16_is_streamed_as_bfloat16(model_dir: ModelDir, choices: Task, tmp_path: Path) -> None:
    ours = extract(streamed(model_dir("llama"), dtype="bfloat16"), choices, splits=["train"], cache=tmp_path / "a")
    theirs = extract(
        TeacherConfig(model=str(model_dir("llama")), dtype="bfloat16", batch_tokens=200),
        choices,
        splits=["train"],
        cache=tmp_path / "b",
    )
    for layout in ours.layouts:
        a, b = (s.read(layout, "option_end", 2, ["a", "b", "c", "d"]) for s in (ours, theirs))
        assert np.abs(a - b).max() <= 0.02 * np.abs(b).max()


def test_a_checkpoint_of_another_format_is_streamed_too(model_dir: ModelDir, choices: Task, tmp_path: Path) -> None:
    old = tmp_path / "old"
    old.mkdir()
    model = AutoModelForCausalLM.from_pretrained(model_dir("llama"), dtype=torch.float32)
    torch.save(model.state_dict(), old / "pytorch_model.bin")
    for name in ("config.json", "tokenizer.json", "tokenizer_config.json"):
        (old / name).write_text((model_dir("llama") / name).read_text())
    task = replace(choices, splits={"train": choices.rows()})
    ours = extract(streamed(old), task, cache=tmp_path / "a")
    expect_same(ours, extract(streamed(model_dir("llama")), task, cache=tmp_path / "b"), task)
