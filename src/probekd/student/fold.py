"""A student's temperature in its own weights, so that it is calibrated wherever they are used."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import nn

from probekd.student.inputs import Encoded
from probekd.student.kinds import StudentKind
from probekd.student.logits import row_logits

# Of a row's largest logit: more than float32's rounding of a scaled matrix.
CLOSE = 1e-4


def fold_temperature(kind: StudentKind, temperature: float, rows: Sequence[Encoded]) -> bool:
    """Divide the last layer by the temperature where that divides the logits, and say whether it did.

    It does where logits are a linear layer's outputs: heads of Transformers are. A decoder's words come from a matrix
    that it shares with its embeddings, so there the temperature stays outside the weights.

    Args:
        kind: The student; its network is changed.
        temperature: What logits are to be divided by.
        rows: A few rows on which the logits are compared before and after.
    """
    layer = _last_layer(kind.network)
    if layer is None:
        return False
    before = row_logits(kind, rows)
    kept = {name: p.detach().clone() for name, p in layer.named_parameters()}
    with torch.no_grad():
        for parameter in layer.parameters():
            parameter.div_(temperature)
    after = row_logits(kind, rows)
    if all(_close(x / temperature, y) for x, y in zip(before, after, strict=True)):
        return True
    with torch.no_grad():
        for name, parameter in layer.named_parameters():
            parameter.copy_(kept[name])
    return False


def _last_layer(network: nn.Module) -> nn.Linear | None:
    """The last linear layer, unless it is the embeddings' matrix too."""
    shared = {id(m.weight) for m in network.modules() if isinstance(m, nn.Embedding)}
    layers = [m for m in network.modules() if isinstance(m, nn.Linear) and id(m.weight) not in shared]
    return layers[-1] if layers else None


def _close(wanted: np.ndarray, found: np.ndarray) -> bool:
    return bool(np.abs(wanted - found).max() <= CLOSE * np.abs(wanted).max())
