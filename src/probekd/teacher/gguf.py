"""GGUF files as teachers: which are read, and why the others are not."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from probekd.errors import ModelError, first_line

# Why a family's GGUF files are not read; Llama's are compared with their safetensors in tests/teacher/test_gguf.py.
_QWEN = (
    "some releases of Transformers un-permute its queries and keys, which llama.cpp never permuted, and drop its biases"
)
GGUF_REFUSED = {
    "qwen2": _QWEN,
    "qwen3": _QWEN,
    "other": "their conversion back to Transformers was not compared with the original weights",
}


def gguf_source(source: Path) -> dict[str, Any]:
    """Where Transformers finds a model: a directory, or a GGUF file in one.

    Raises:
        ModelError: a GGUF file that is damaged, or of a family whose conversion is not known to be right.
    """
    if source.suffix != ".gguf":
        return {"pretrained_model_name_or_path": source}
    try:
        from gguf import GGUFReader
    except ImportError:
        raise ModelError(f"{source}: reading GGUF files needs the package gguf: pip install 'probekd[gguf]'") from None
    try:
        reader = GGUFReader(source)
        field = reader.fields.get("general.architecture")
    except (ValueError, IndexError, KeyError, OSError) as error:
        raise ModelError(f"{source}: not a whole GGUF file ({first_line(error)}); fetch it again") from None
    family = bytes(field.parts[field.data[0]]).decode() if field else "?"
    if family != "llama":
        raise ModelError(
            f"{source}: GGUF files of the family {family!r} are refused: {GGUF_REFUSED.get(family, GGUF_REFUSED['other'])}; "
            "use the model's safetensors"
        )
    # llama.cpp keeps Llama 3's scaling of positions in a tensor, other kinds in fields; Transformers reads neither.
    scaled = [t.name for t in reader.tensors if t.name.startswith("rope_freqs")]
    scaled += [name for name in reader.fields if ".rope.scaling." in name]
    if scaled:
        raise ModelError(
            f"{source}: this file scales rotary positions ({scaled[0]}), which Transformers' reader of GGUF drops, so that every "
            "state would be another; use the model's safetensors"
        )
    return {"pretrained_model_name_or_path": source.parent, "gguf_file": source.name}
