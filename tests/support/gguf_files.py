"""A tiny Llama's directory written again as a GGUF file, as llama.cpp's converter does it."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
from gguf import MODEL_ARCH, GGMLQuantizationType, GGUFWriter, RopeScalingType, TokenType, get_tensor_name_map
from safetensors.numpy import load_file


def permuted(weight: np.ndarray, heads: int) -> np.ndarray:
    """Rows of queries or keys in the order of llama.cpp's rotary embedding: pairs together, not halves."""
    halves = weight.reshape(heads, 2, weight.shape[0] // heads // 2, weight.shape[1])
    return halves.swapaxes(1, 2).reshape(weight.shape)


def write_gguf(
    directory: Path, out: Path, *, permute: bool = True, half: bool = False, family: str = "llama", scaled: str = ""
) -> Path:
    """Write a GGUF file of a model directory with F32 weights.

    Args:
        directory: A tiny Llama's or Qwen2's.
        out: The file.
        permute: As the converter does; a file without is what a converter for another family would leave.
        half: Matrices as F16.
        family: What the file says it is.
        scaled: How it says that rotary positions are scaled: in a "tensor", in a "field", or not.
    """
    config = json.loads((directory / "config.json").read_text())
    writer = GGUFWriter(out, family)
    writer.add_name("tiny")
    writer.add_context_length(config["max_position_embeddings"])
    writer.add_embedding_length(config["hidden_size"])
    writer.add_block_count(config["num_hidden_layers"])
    writer.add_feed_forward_length(config["intermediate_size"])
    writer.add_head_count(config["num_attention_heads"])
    writer.add_head_count_kv(config["num_key_value_heads"])
    writer.add_layer_norm_rms_eps(config["rms_norm_eps"])
    writer.add_rope_dimension_count(config["hidden_size"] // config["num_attention_heads"])
    writer.add_rope_freq_base(config["rope_parameters"]["rope_theta"])
    writer.add_vocab_size(config["vocab_size"])
    if scaled == "field":
        writer.add_rope_scaling_type(RopeScalingType.LINEAR)
        writer.add_rope_scaling_factor(2.0)
    elif scaled == "tensor":
        writer.add_tensor("rope_freqs.weight", np.ones(4, np.float32))
    _add_tokenizer(writer, directory)
    names = get_tensor_name_map(MODEL_ARCH.LLAMA, config["num_hidden_layers"])
    for name, weight in load_file(directory / "model.safetensors").items():
        heads = {"q_proj": "num_attention_heads", "k_proj": "num_key_value_heads"}.get(name.split(".")[-2])
        if heads and permute:
            weight = permuted(weight, config[heads])
        kind = GGMLQuantizationType.F16 if half and weight.ndim == 2 else GGMLQuantizationType.F32
        array = np.ascontiguousarray(weight.astype(np.float16 if kind is GGMLQuantizationType.F16 else np.float32))
        writer.add_tensor(names.get_name(name, try_suffixes=(".weight", ".bias")), array)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return out


def _add_tokenizer(writer: GGUFWriter, directory: Path) -> None:
    """The byte-level BPE: GGUF's tokenizer ``gpt2`` holds its tokens and merges as they are."""
    tokenizer = json.loads((directory / "tokenizer.json").read_text())
    special = {t["content"]: t["id"] for t in tokenizer["added_tokens"] if t["special"]}
    vocabulary = {**tokenizer["model"]["vocab"], **special}
    tokens = sorted(vocabulary, key=lambda token: vocabulary[token])
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("gpt-2")
    writer.add_token_list(tokens)
    writer.add_token_types([TokenType.CONTROL if t in special else TokenType.NORMAL for t in tokens])
    writer.add_token_merges([" ".join(m) for m in tokenizer["model"]["merges"]])
    writer.add_bos_token_id(special["<s>"])
    writer.add_eos_token_id(special["</s>"])
    # What the tokenizer does by its post-processor, a GGUF file says in one flag.
    writer.add_add_bos_token(True)
