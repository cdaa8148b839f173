from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoTokenizer, T5Config

from probekd.config import StudentConfig
from probekd.errors import ModelError
from probekd.student import distill
from probekd.student.load import is_decoder, load_classifier, load_encoder, load_tokenizer, usable_length
from probekd.tasks.base import Kind, Task


def load(directory: str | Path, kind: Kind = "classification") -> object:
    config = StudentConfig(model=str(directory))
    return load_classifier(directory, kind, ("a", "b"), load_tokenizer(directory, config).pad_token_id, config)


def test_a_decoder_without_pad_token_classifies(tiny_gpt2: Path, kinds: Task) -> None:
    config = StudentConfig(model=str(tiny_gpt2), label_epochs=20, early_stopping=None, batch_size=8, learning_rate=6e-3)
    student = distill(tiny_gpt2, kinds, None, method="labels", config=config)
    saved = json.loads((student.directory / "config.json").read_text())
    tokenizer = AutoTokenizer.from_pretrained(student.directory)
    assert saved["pad_token_id"] == tokenizer.pad_token_id == tokenizer.eos_token_id
    test = kinds.rows("test")
    one_by_one = [student.predict_proba([e])[0] for e in test]  # without any padding
    batched = student.predict_proba(test)
    np.testing.assert_allclose(batched, one_by_one, atol=1e-5)
    assert np.mean([p.argmax() == e.answer for p, e in zip(batched, test, strict=True)]) >= 0.9


def test_multiple_choice_needs_an_architecture_that_has_it(tiny_gpt2: Path) -> None:
    with pytest.raises(ModelError, match=r"gpt2 has no MultipleChoice head.*multiple_choice needs.*bert.*deberta-v2"):
        load(tiny_gpt2, "multiple_choice")


def test_encoder_decoders_are_refused(tiny_bert: Path, tmp_path: Path) -> None:
    AutoTokenizer.from_pretrained(tiny_bert).save_pretrained(tmp_path)
    T5Config(d_model=8, num_layers=1).save_pretrained(tmp_path)
    with pytest.raises(ModelError, match="t5 is an encoder-decoder; take an encoder"):
        load(tmp_path)


@pytest.mark.parametrize("content", [None, {}, {"model_type": "no-such-model"}, {"model_type": "bert"}])
def test_a_directory_that_is_no_model_is_refused(
    tiny_bert: Path, tmp_path: Path, content: dict[str, str] | None
) -> None:
    AutoTokenizer.from_pretrained(tiny_bert).save_pretrained(tmp_path)
    if content is not None:
        (tmp_path / "config.json").write_text(json.dumps(content))
    with pytest.raises(ModelError, match=r"cannot be loaded.*config\.json, model\.safetensors and a tokenizer"):
        load(tmp_path)


def test_a_model_without_tokenizer_is_refused(tiny_bert: Path, tmp_path: Path) -> None:
    for name in ("config.json", "model.safetensors"):
        shutil.copy(tiny_bert / name, tmp_path)
    with pytest.raises(ModelError, match="no tokenizer files"):
        load(tmp_path)


def test_weights_of_another_model_are_refused(tiny_bert: Path, tmp_path: Path) -> None:
    """Transformers would start the missing layers at random and say so in a warning."""
    directory = tmp_path / "bert"
    shutil.copytree(tiny_bert, directory)
    weights = load_file(directory / "model.safetensors")
    kept = {name: tensor for name, tensor in weights.items() if "layer.1." not in name}
    save_file(kept, directory / "model.safetensors", metadata={"format": "pt"})
    for loader in (load, lambda path: load_encoder(path, StudentConfig(model=str(path)))):
        with pytest.raises(ModelError, match=r"16 weights of the model are missing, such as .*layer\.1"):
            loader(directory)


def test_a_missing_pooler_is_no_fault(tiny_bert: Path, tmp_path: Path) -> None:
    directory = tmp_path / "bert"
    shutil.copytree(tiny_bert, directory)
    weights = load_file(directory / "model.safetensors")
    kept = {name: tensor for name, tensor in weights.items() if "pooler" not in name}
    assert len(kept) == len(weights) - 2
    save_file(kept, directory / "model.safetensors", metadata={"format": "pt"})
    load(directory)


def test_a_head_of_another_size_is_replaced(tiny_bert: Path, kinds: Task, config: StudentConfig) -> None:
    first = distill(tiny_bert, kinds, None, method="labels", config=config.model_copy(update={"label_epochs": 1}))
    network = load(first.directory)
    assert network.config.num_labels == 2  # type: ignore[attr-defined]
    assert network.config.id2label == {0: "a", 1: "b"}  # type: ignore[attr-defined]
    assert network.classifier.weight.shape == (2, 32)  # type: ignore[attr-defined]


def test_half_precision_checkpoints_are_trained_in_float32(tiny_bert: Path, tmp_path: Path) -> None:
    directory = tmp_path / "bert"
    shutil.copytree(tiny_bert, directory)
    weights = load_file(directory / "model.safetensors")
    halves = {n: t.bfloat16() for n, t in weights.items()}
    save_file(halves, directory / "model.safetensors", metadata={"format": "pt"})
    stored = json.loads((directory / "config.json").read_text())
    (directory / "config.json").write_text(json.dumps({**stored, "dtype": "bfloat16"}))
    assert {p.dtype for p in load(directory).parameters()} == {torch.float32}  # type: ignore[attr-defined]


def test_decoders_are_told_from_encoders(tiny_bert: Path, tiny_gpt2: Path) -> None:
    configs = [load_encoder(path, StudentConfig(model=str(path))).config for path in (tiny_bert, tiny_gpt2)]
    assert [is_decoder(c) for c in configs] == [False, True]


def test_usable_length_is_the_least_of_the_three(tiny_bert: Path) -> None:
    tokenizer = AutoTokenizer.from_pretrained(tiny_bert)  # at most 64
    encoder = load_encoder(tiny_bert, StudentConfig(model=str(tiny_bert)))
    assert usable_length(tokenizer, encoder.config, 32) == 32
    assert usable_length(tokenizer, encoder.config, 256) == 64
    encoder.config.max_position_embeddings = 48
    assert usable_length(tokenizer, encoder.config, 256) == 48
