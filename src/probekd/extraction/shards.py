"""A shard: states of some rows in one safetensors file, and in its header what else is known of the rows."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from itertools import cycle, islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa

from probekd.files import replacing, save_tensors
from probekd.prompts import Prompt
from probekd.tasks.base import content_hash

if TYPE_CHECKING:
    from torch import Tensor

    from probekd.teacher.extract import Reading


def write(path: Path, prompts: Sequence[Prompt], reading: Reading, orders: int) -> None:
    """Write a shard; its header has the rows' columns, so that states are never there without them."""
    write_tensors(path, reading.states, columns(prompts, reading, orders))


def write_tensors(path: Path, states: Mapping[Any, Tensor], described: Mapping[str, Any]) -> None:
    """Write states, and the rows' columns in the header."""
    with replacing(path) as temporary:
        tensors = {str(name): tensor.contiguous() for name, tensor in states.items()}
        save_tensors(tensors, temporary, {"rows": json.dumps(described)})


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
