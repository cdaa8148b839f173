"""What the losses share: their signatures, and log-probabilities that never make nan of an absent option."""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor
from torch.nn.functional import log_softmax

Divergence = Callable[[Tensor, Tensor], Tensor]
"""(log_target, log_student), each (b, k) log-probabilities -> (b,) in nats."""
HiddenLoss = Callable[[Tensor, Tensor], Tensor]
"""(student, teacher), each (..., d) -> (...)."""

# In a divergence 0 * log 0 is 0, and in floats 0 * -inf is nan, in the loss or in its gradient. 0 * FLOOR is 0 in both.
FLOOR = -1e9


def log_probs(logits: Tensor, temperature: float = 1.0) -> Tensor:
    """``log softmax(logits / T)`` over the last axis in float32; -inf becomes about ``FLOOR``, whose probability is 0."""
    return log_softmax(logits.float().clamp_min(FLOOR) / temperature, dim=-1)
