from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from tiny import CAUSAL, FAMILIES, byte_level_tokenizer, word_tokenizer
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    MiniCPM3Config,
    MiniCPM3ForCausalLM,
    RobertaConfig,
    RobertaModel,
    T5Config,
    T5ForConditionalGeneration,
)

from probekd.config import TeacherConfig
from probekd.errors import ModelError
from probekd.extraction import extract
from probekd.tasks.base import Task
from probekd.teacher.load import Teacher, load_teacher, load_tokenizer, model_fingerprint, resolve_model

ModelDir = Callable[[str], Path]
TeacherOf = Callable[[str], Teacher]


@pytest.fixture
def copy(model_dir: ModelDir, tmp_path: Path) -> Path:
    """A model directory that a test may spoil."""
    return Path(shutil.copytree(model_dir("llama"), tmp_path / "model"))


def edit_weights(directory: Path, change: Callable[[dict[str, torch.Tensor]], None]) -> None:
    weights = load_file(directory / "model.safetensors")
    change(weights)
    save_file(weights, directory / "model.safetensors", metadata={"format": "pt"})


@pytest.mark.parametrize("family", FAMILIES)
def test_a_teacher_is_frozen_and_taken_apart(family: str, teacher_of: TeacherOf) -> None:
    teacher = teacher_of(family)
    assert teacher.depths == teacher.body.config.num_hidden_layers
    assert teacher.width == 32
    assert teacher.max_length == 256
    assert teacher.encoder == (family == "bert")
    assert (teacher.norm is None) == (family == "bert")
    assert not teacher.model.training
    assert not any(p.requires_grad for p in teacher.model.parameters())


@pytest.mark.parametrize("family", CAUSAL)
def test_the_head_is_the_models_own(family: str, teacher_of: TeacherOf, model_dir: ModelDir) -> None:
    teacher = teacher_of(family)
    theirs = AutoModelForCausalLM.from_pretrained(model_dir(family), dtype=torch.float32)
    assert teacher.head_weight is not None
    assert torch.equal(teacher.head_weight, theirs.get_output_embeddings().weight)
    assert torch.equal(teacher.head_weight, theirs.get_input_embeddings().weight) == (
        family in ("llama-tied", "qwen2", "gemma2", "gemma3", "gpt2")
    )
    assert teacher.softcap == (2.0 if family == "gemma2" else None)


def test_an_encoder_has_no_head(teacher_of: TeacherOf) -> None:
    assert teacher_of("bert").head_weight is None


def test_a_head_that_was_not_saved_is_never_made_up(copy: Path) -> None:
    edit_weights(copy, lambda w: w.pop("lm_head.weight"))
    assert load_teacher(copy).head_weight is None


def test_a_body_saved_without_head(model_dir: ModelDir, tmp_path: Path) -> None:
    for family, has_head in (("llama", False), ("llama-tied", True)):
        directory = tmp_path / family
        model = AutoModelForCausalLM.from_pretrained(model_dir(family), dtype=torch.float32)
        model.base_model.save_pretrained(directory)
        byte_level_tokenizer().save_pretrained(directory)
        teacher = load_teacher(directory)
        assert (teacher.head_weight is not None) == has_head
        assert torch.equal(teacher.body.embed_tokens.weight, model.base_model.embed_tokens.weight)


def test_missing_weights(copy: Path) -> None:
    edit_weights(copy, lambda w: w.pop("model.layers.1.mlp.up_proj.weight"))
    with pytest.raises(ModelError, match=r"1 weights are missing.*layers\.1\.mlp\.up_proj"):
        load_teacher(copy)


def test_encoder_decoders_are_refused(tmp_path: Path) -> None:
    T5ForConditionalGeneration(
        T5Config(vocab_size=20, d_model=8, d_ff=8, d_kv=4, num_heads=2, num_layers=1, decoder_start_token_id=0)
    ).save_pretrained(tmp_path)
    with pytest.raises(ModelError, match="encoder-decoder teachers are not supported"):
        load_teacher(tmp_path)


def test_a_directory_that_is_no_model(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=r"config\.json is missing"):
        load_teacher(tmp_path)
    with pytest.raises(ModelError, match="no such model directory"):
        resolve_model(tmp_path / "none")


def test_a_hub_model_without_network(monkeypatch: pytest.MonkeyPatch) -> None:
    import huggingface_hub
    from huggingface_hub.errors import LocalEntryNotFoundError

    def offline(*_: object, **__: object) -> str:
        raise LocalEntryNotFoundError("offline")

    monkeypatch.setattr(huggingface_hub, "snapshot_download", offline)
    with pytest.raises(ModelError, match="owner/name: no such directory, and the Hub could not provide it"):
        resolve_model("owner/name")


@pytest.mark.parametrize("older", [False, True])
def test_the_hub_is_asked_for_one_form_of_the_weights(
    older: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import huggingface_hub

    held = ["config.json", "pytorch_model.bin", "consolidated.safetensors", *([] if older else ["model.safetensors"])]
    fetched: set[str] = set()

    def download(_: str, *, allow_patterns: list[str], ignore_patterns: list[str], **__: object) -> str:
        for name in huggingface_hub.utils.filter_repo_objects(
            held, allow_patterns=allow_patterns, ignore_patterns=ignore_patterns
        ):
            fetched.add(name)
            (tmp_path / name).touch()
        return str(tmp_path)

    monkeypatch.setattr(huggingface_hub, "snapshot_download", download)
    assert resolve_model("owner/name") == tmp_path
    assert fetched == {"config.json", "pytorch_model.bin" if older else "model.safetensors"}


def test_damaged_weights(copy: Path) -> None:
    (copy / "model.safetensors").write_bytes(b"\x08\x00\x00\x00\x00\x00\x00\x00garbage!")
    with pytest.raises(ModelError, match="cannot be loaded as a teacher"):
        load_teacher(copy)


def test_a_model_without_tokenizer(copy: Path) -> None:
    for file in copy.glob("tokenizer*"):
        file.unlink()
    with pytest.raises(ModelError, match="tokenizer cannot be loaded"):
        load_teacher(copy)


def test_a_longer_context_than_the_models_is_refused(model_dir: ModelDir) -> None:
    config = TeacherConfig(model=str(model_dir("gpt2")), max_length=257)
    with pytest.raises(ModelError, match=r"teacher\.max_length is 257, and the model's context ends at 256 tokens"):
        load_teacher(config)


def test_positions_that_are_counted_behind_the_padding_shorten_the_context(tmp_path: Path) -> None:
    """RoBERTa: of 64 positions, with the padding at 1, 62 are left; one token more has no position."""
    size = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 48}
    model = RobertaModel(RobertaConfig(vocab_size=50, max_position_embeddings=64, pad_token_id=1, **size))
    model.save_pretrained(tmp_path)
    word_tokenizer().save_pretrained(tmp_path)
    teacher = load_teacher(tmp_path)
    assert teacher.max_length == 62
    with torch.inference_mode():
        teacher.body(torch.full((1, 62), 5))
        with pytest.raises((IndexError, RuntimeError)):
            teacher.body(torch.full((1, 63), 5))


def test_dtype_and_max_length_follow_the_config(model_dir: ModelDir) -> None:
    config = TeacherConfig(model=str(model_dir("llama")), dtype="bfloat16", max_length=17)
    teacher = load_teacher(config)
    assert next(teacher.body.parameters()).dtype == torch.bfloat16
    assert teacher.max_length == 17


def test_fingerprint_follows_contents_not_place(copy: Path, model_dir: ModelDir) -> None:
    original = model_fingerprint(model_dir("llama"))
    assert model_fingerprint(copy) == original
    (copy / "README.md").write_text("A card changes nothing.")
    assert model_fingerprint(copy) == original


@pytest.mark.parametrize("part", ["weights", "config.json", "tokenizer.json", "chat_template.jinja"])
def test_fingerprint_changes_with_each_part(part: str, copy: Path) -> None:
    before = model_fingerprint(copy)
    if part == "weights":
        edit_weights(copy, lambda w: w["model.norm.weight"].view(-1)[:1].add_(1e-3))
    elif part == "chat_template.jinja":
        (copy / part).write_text("{{ messages }}")
    else:
        (copy / part).write_text(json.dumps(json.loads((copy / part).read_text()) | {"extra": 1}))
    assert model_fingerprint(copy) != before


def test_digests_are_remembered_and_a_damaged_memo_is_made_anew(
    copy: Path, cache_directory: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = model_fingerprint(copy)
    memo = cache_directory / "fingerprints.json"
    memo.write_text("{")
    assert model_fingerprint(copy) == before
    monkeypatch.setattr("probekd.teacher.load.file_digest", lambda path: pytest.fail(f"{path} hashed again"))
    assert model_fingerprint(copy) == before
    monkeypatch.undo()
    os.utime(copy / "config.json", ns=(1, 1))
    assert model_fingerprint(copy) == before


def test_tokenizer_of_a_directory(model_dir: ModelDir) -> None:
    assert load_tokenizer(model_dir("bert")).is_fast


def test_blocks_that_another_number_of_them_would_change_are_not_cut(
    model_dir: ModelDir, choices: Task, tmp_path: Path
) -> None:
    """MiniCPM3 scales what a block adds by the number of blocks."""
    tokenizer = AutoTokenizer.from_pretrained(model_dir("llama"))
    ranks = {"q_lora_rank": 8, "kv_lora_rank": 8, "qk_nope_head_dim": 4, "qk_rope_head_dim": 4, "v_head_dim": 8}
    sizes = {"hidden_size": 32, "intermediate_size": 48, "num_attention_heads": 4, "num_key_value_heads": 4}
    config = MiniCPM3Config(vocab_size=len(tokenizer), num_hidden_layers=4, pad_token_id=0, **sizes, **ranks)
    directory = tmp_path / "minicpm3"
    MiniCPM3ForCausalLM(config).save_pretrained(directory)
    tokenizer.save_pretrained(directory)
    assert len(load_teacher(directory, depth=2).blocks) == 4
    ours, theirs = (
        extract(teacher, choices, splits=["train"], depths=[2], outputs=outputs, cache=tmp_path / str(outputs))
        for teacher, outputs in ((TeacherConfig(model=str(directory)), False), (directory, True))
    )
    for layout in theirs.layouts:
        a, b = (s.read(layout, "option_end", 2, ["a", "b"]) for s in (ours, theirs))
        np.testing.assert_allclose(a, b, atol=1e-5 * np.abs(b).max())


@pytest.mark.parametrize("depth", [0, 1, 2])
def test_a_cut_teacher_reads_what_the_whole_one_does(
    depth: int, model_dir: ModelDir, choices: Task, tmp_path: Path
) -> None:
    ours, theirs = (
        extract(teacher, choices, splits=["train"], depths=[depth], outputs=outputs, cache=tmp_path / str(outputs))
        for teacher, outputs in ((TeacherConfig(model=str(model_dir("gemma3"))), False), (model_dir("gemma3"), True))
    )
    for layout in theirs.layouts:
        a, b = (s.read(layout, "option_end", depth, ["a", "b"]) for s in (ours, theirs))
        assert np.abs(a - b).max() <= 1e-4 * np.abs(b).max()
    assert len(load_teacher(model_dir("gemma3"), depth=1).blocks) == 1
