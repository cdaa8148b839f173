"""A shard: states of some rows in one safetensors file, and in its header what else is known of the rows."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from itertools import cycle, islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa

from probekd.files import file_digest, flush, replacing, save_tensors, write_text
from probekd.prompts import Prompt
from probekd.tasks.base import content_hash

if TYPE_CHECKING:
    from torch import Tensor

    from probekd.teacher.extract import Reading

# Of the shards of a store, until its manifest has them.
DIGESTS = ".digests"


def write(path: Path, states: Mapping[Any, Tensor], described: Mapping[str, Any]) -> None:
    """Write a shard, whole on the disk with its digest beside it before it has its name."""
    with replacing(path) as temporary:
        write_tensors(temporary, states, described)
        flush(temporary)
        write_text(_digest_file(path), file_digest(temporary))


def write_tensors(path: Path, states: Mapping[Any, Tensor], described: Mapping[str, Any]) -> None:
    """Write states, and the rows' columns in the header, so that states are never there without them."""
    tensors = {str(name): tensor.contiguous() for name, tensor in states.items()}
    save_tensors(tensors, path, {"rows": json.dumps(described)})


def is_whole(path: Path) -> bool:
    """Whether a shard of an unfinished store is there, byte for byte as it was written."""
    return path.is_file() and _digest_file(path).is_file() and file_digest(path) == digest(path)


def digest(path: Path) -> str:
    """SHA-256 of a shard as it was written; raises OSError once the store is finished, whose manifest has it."""
    return _digest_file(path).read_text(encoding="utf-8")


def _digest_file(path: Path) -> Path:
    return path.parent / DIGESTS / path.stem


def columns(prompts: Sequence[Prompt], reading: Reading, orders: int) -> dict[str, list[Any]]:
    """Columns of the index, by name."""
    found: dict[str, list[Any]] = {
        "id": [p.id for p in prompts],
        "num_tokens": [p.num_tokens for p in prompts],
        "tokens_sha256": [content_hash(*(s.tokens for s in p.sequences)) for p in prompts],
        "num_options": [len(p.option_bytes) for p in prompts],
        "option_tokens": [[s.scored[1] - s.scored[0] for s in p.sequences] for p in prompts],
        "option_bytes": [list(p.option_bytes) for p in prompts],
    }
    for name, values in (("label_logits", reading.label_logits), ("option_loglik", reading.option_loglik)):
        if values is not None:
            found[name] = [_own(v, p) for v, p in zip(values, prompts, strict=True)]
    if orders > 1:
        # The order of each of the row's ``answer`` states: its own orders, repeated in turn as the states are.
        found["orders"] = [[list(s.order) for s in islice(cycle(p.sequences), orders)] for p in prompts]
    return found


def _own(values: np.ndarray, prompt: Prompt) -> list[float]:
    return [float(v) for v in values[: len(prompt.option_bytes)]]


def header(path: Path) -> dict[str, list[Any]]:
    """The rows' columns from a shard's header."""
    from safetensors import safe_open

    with safe_open(path, framework="pt") as tensors:
        return dict(json.loads(tensors.metadata()["rows"]))


def described(path: Path, split: str) -> pa.Table:
    """A shard's part of the index."""
    found = header(path)
    table = pa.table({"id": found.pop("id")}).append_column("split", pa.array([split] * len(found["num_tokens"])))
    for name, values in found.items():
        table = table.append_column(name, pa.array(values))
    return table
