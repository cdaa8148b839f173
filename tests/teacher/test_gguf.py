"""GGUF files of Llamas against the safetensors that they were made of."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

pytest.importorskip("gguf")

from gguf_files import write_gguf

from probekd.errors import ModelError
from probekd.prompts import PromptEncoder
from probekd.tasks.base import Task
from probekd.teacher.batching import PaddedBatch
from probekd.teacher.check import relative_error, states_of
from probekd.teacher.load import Teacher, load_teacher
from probekd.teacher.packing import branches_of

ModelDir = Callable[[str], Path]


def prompts_of(teacher: Teacher, task: Task) -> list:
    return [PromptEncoder(teacher.tokenizer, task).encode(e, "branched") for e in task.rows()]


def errors(ours: Teacher, theirs: Teacher, task: Task) -> list[float]:
    """Worst relative error at each depth that ours has."""
    batch = PaddedBatch([b for i, p in enumerate(prompts_of(theirs, task)) for b in branches_of(i, p)])
    (a,), (b,) = (states_of(teacher, [batch], len(teacher.blocks)) for teacher in (ours, theirs))
    return [relative_error(a[k], b[k]) for k in a]


@pytest.mark.parametrize("family", ["llama", "llama-tied"])
def test_states_and_head_are_those_of_the_safetensors(
    family: str, model_dir: ModelDir, choices: Task, tmp_path: Path
) -> None:
    theirs = load_teacher(model_dir(family))
    ours = load_teacher(write_gguf(model_dir(family), tmp_path / "tiny.gguf"))
    assert ours.depths == theirs.depths == len(errors(ours, theirs, choices)) - 1
    assert max(errors(ours, theirs, choices)) <= 1e-6
    assert ours.head_weight is not None and theirs.head_weight is not None
    assert torch.equal(ours.head_weight, theirs.head_weight)
    assert ours.norm is not None and torch.equal(ours.norm.weight, theirs.norm.weight)
    assert ours.max_length == theirs.max_length


def test_the_base_of_the_positions_comes_along(model_dir: ModelDir, choices: Task, tmp_path: Path) -> None:
    directory = Path(shutil.copytree(model_dir("llama"), tmp_path / "model"))
    config = json.loads((directory / "config.json").read_text())
    config["rope_parameters"]["rope_theta"] = 500.0
    (directory / "config.json").write_text(json.dumps(config))
    theirs = load_teacher(directory)
    assert max(errors(theirs, load_teacher(model_dir("llama")), choices)) > 1e-3
    assert max(errors(load_teacher(write_gguf(directory, tmp_path / "tiny.gguf")), theirs, choices)) <= 1e-6


def test_its_tokens_are_those_of_the_safetensors(model_dir: ModelDir, choices: Task, tmp_path: Path) -> None:
    theirs = load_teacher(model_dir("llama"))
    ours = load_teacher(write_gguf(model_dir("llama"), tmp_path / "tiny.gguf"))
    assert prompts_of(ours, choices) == prompts_of(theirs, choices)
    assert ours.tokenizer.bos_token_id == theirs.tokenizer.bos_token_id


def test_the_first_blocks_alone(model_dir: ModelDir, choices: Task, tmp_path: Path) -> None:
    ours = load_teacher(write_gguf(model_dir("llama"), tmp_path / "tiny.gguf"), depth=2)
    found = errors(ours, load_teacher(model_dir("llama")), choices)
    assert len(found) == 3 and max(found) <= 1e-6


def test_queries_and_keys_that_were_not_permuted_are_seen(model_dir: ModelDir, choices: Task, tmp_path: Path) -> None:
    ours = load_teacher(write_gguf(model_dir("llama"), tmp_path / "tiny.gguf", permute=False))
    assert max(errors(ours, load_teacher(model_dir("llama")), choices)) > 1e-2


@pytest.mark.parametrize(
    ("family", "why"),
    [
        ("qwen2", "un-permute its queries and keys, which llama.cpp never permuted, and drop its biases"),
        ("qwen3", "un-permute its queries and keys"),
        ("gemma2", "was not compared with the original weights"),
    ],
)
def test_other_families_are_refused_with_the_reason(family: str, why: str, model_dir: ModelDir, tmp_path: Path) -> None:
    # Qwen2's own weights, which llama.cpp leaves as they are; the others are refused for their name.
    made = "qwen2" if family == "qwen2" else "llama"
    file = write_gguf(model_dir(made), tmp_path / "tiny.gguf", permute=False, family=family)
    with pytest.raises(ModelError, match=rf"tiny\.gguf: GGUF files of the family '{family}' are refused: .*{why}"):
        load_teacher(file)


@pytest.mark.parametrize("scaled", ["tensor", "field"])
def test_scaled_positions_are_refused(scaled: str, model_dir: ModelDir, tmp_path: Path) -> None:
    """As in every Llama since 3.1: Transformers' reader would leave the scaling out."""
    file = write_gguf(model_dir("llama"), tmp_path / "tiny.gguf", scaled=scaled)
    with pytest.raises(
        ModelError, match=r"tiny\.gguf: this file scales rotary positions \((rope_freqs|llama\.rope\.scaling)"
    ):
        load_teacher(file)


@pytest.mark.parametrize("content", [b"", b"x", b"GGUF", b"GGUF" + bytes(40)], ids=["empty", "x", "magic", "header"])
def test_a_damaged_gguf_file(content: bytes, tmp_path: Path) -> None:
    path = tmp_path / "model.gguf"
    path.write_bytes(content)
    with pytest.raises(
        ModelError, match=r"model\.gguf: (not a whole GGUF file|GGUF files of the family '\?' are refused)"
    ):
        load_teacher(path)
