"""LoRA: train small factors beside a frozen network's matrices, and merge them into it when it is saved."""

from __future__ import annotations

import warnings
from collections.abc import Collection
from pathlib import Path
from typing import Any

from probekd.config import LoraConfig
from probekd.errors import ConfigError


def with_adapter(network: Any, lora: LoraConfig, *, heads: Collection[str] = (), model: str | Path) -> Any:
    """Freeze a network and put ``W + (alpha / rank) B A`` in the place of its targets' W (Hu et al., arXiv 2106.09685).

    ``B`` starts at zero, so the network answers as before until it is trained.

    Args:
        network: A Transformers model; it is changed, and is inside what is returned.
        lora: Rank, scale, dropout and targets.
        heads: Names of modules that start at random, so they are trained whole.
        model: Its name, for messages.

    Raises:
        ConfigError: peft is not installed, the targets are not in the network, or none is known for its architecture.
    """
    try:
        import peft
    except ImportError:
        raise ConfigError("student.lora needs the package peft: pip install 'probekd[peft]'") from None
    scale: Any = 2 * lora.rank if lora.alpha is None else lora.alpha  # peft says int, and takes any number
    wanted = peft.LoraConfig(
        r=lora.rank,
        lora_alpha=scale,
        lora_dropout=lora.dropout,
        target_modules=None if lora.targets is None else list(lora.targets),
        modules_to_save=sorted(heads) or None,
    )
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "fan_in_fan_out")  # GPT-2 keeps its matrices transposed; peft copes
            warnings.filterwarnings("ignore", category=FutureWarning)  # between peft and Transformers, not for users
            return peft.get_peft_model(network, wanted)
    except ValueError as error:
        linear = sorted({name.rpartition(".")[2] for name, module in network.named_modules() if _is_linear(module)})
        fault = "peft knows none for" if lora.targets is None else f"{', '.join(lora.targets)} cannot be adapted in"
        raise ConfigError(
            f"student.lora.targets: {fault} {model} ({network.config.model_type}); name some of its linear modules: "
            f"{', '.join(linear)}"
        ) from error


def merged(network: Any) -> Any:
    """A network with its adapter, if it has one, added to its own weights: plain Transformers again."""
    return network.merge_and_unload() if hasattr(network, "merge_and_unload") else network


def _is_linear(module: Any) -> bool:
    return type(module).__name__ in ("Linear", "Conv1D")
