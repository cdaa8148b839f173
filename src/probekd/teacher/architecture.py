"""What families call their parts, and what their configs say of them."""

from __future__ import annotations

from typing import Any

NORM_NAMES = ("norm", "ln_f", "final_layer_norm", "final_layernorm", "final_norm", "norm_f")


def find_norm(body: Any) -> Any | None:
    """The final norm, which sits beside the stack of blocks under one of a few names."""
    owners = [
        body,
        *(getattr(body, part) for part in ("decoder", "transformer", "language_model") if hasattr(body, part)),
    ]
    return next((getattr(o, n) for o in owners for n in NORM_NAMES if getattr(o, n, None) is not None), None)


def logit_scale(text_config: Any) -> float:
    """What logits are multiplied by before any soft cap."""
    multiplied = getattr(text_config, "logit_scale", None)
    divided = getattr(text_config, "logits_scaling", None)
    return float(multiplied if multiplied is not None else 1 / divided if divided else 1)


def context_length(body: Any, text_config: Any) -> int:
    """The longest prompt in tokens; a model that names none has no limit but memory."""
    positions = int(getattr(text_config, "max_position_embeddings", 0) or 0)
    if not positions:
        return 2**31
    # RoBERTa and its kin begin to count behind the position of the padding.
    table = getattr(getattr(body, "embeddings", None), "position_embeddings", None)
    padding = getattr(table, "padding_idx", None)
    return positions if padding is None else positions - padding - 1
