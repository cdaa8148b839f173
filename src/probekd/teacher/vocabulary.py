"""What a teacher's head says of states before the final norm: logits of some tokens, log-probabilities of given ones."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

import torch

from probekd.teacher.linears import product
from probekd.teacher.load import Teacher

if TYPE_CHECKING:
    from torch import Tensor

# Numbers of a slice of logits: 8 MiB in float32, which a cache holds while they are summed up.
_AT_ONCE = 2**21


def vocabulary_logits(teacher: Teacher, hidden: Tensor, tokens: Tensor | None = None) -> Tensor:
    """Logits in float32 from pre-norm states (..., d): all of the vocabulary, or only ``tokens``."""
    weight = _head(teacher)
    place = slice(None) if tokens is None else tokens.to(weight.device)
    return _finished(teacher, product(_normed(teacher, hidden), weight[place]), place).to(hidden.device)


def token_log_probs(teacher: Teacher, hidden: Tensor, at: Tensor, tokens: Tensor) -> Tensor:
    """Log-probabilities (p,) in float32 of ``tokens`` (p,), each predicted by row ``at`` (p,) of pre-norm states (n, d).

    Logits of all of the vocabulary are never there at once: a slice of it after another is added up, for all states.
    """
    weight = _head(teacher)
    at, tokens = at.to(weight.device), tokens.to(weight.device)
    normed = _normed(teacher, hidden)
    own = (normed[at].float() * weight[tokens].float()).sum(1)
    top = torch.full((len(normed),), -torch.inf, device=weight.device)
    total = torch.zeros_like(top)
    for place in _slices(len(weight), max(1, _AT_ONCE // max(1, len(normed)))):
        logits = _finished(teacher, product(normed, weight[place]), place)
        higher = torch.maximum(top, logits.amax(1))
        total = total * (top - higher).exp() + logits.sub_(higher[:, None]).exp_().sum(1)
        top = higher
    return (_finished(teacher, own, tokens) - (top + total.log())[at]).to(hidden.device)


def _slices(length: int, step: int) -> Iterator[slice]:
    return (slice(start, min(start + step, length)) for start in range(0, length, step))


def _head(teacher: Teacher) -> Tensor:
    assert teacher.head_weight is not None
    return teacher.head_weight


def _normed(teacher: Teacher, hidden: Tensor) -> Tensor:
    return (hidden if teacher.norm is None else teacher.norm(hidden)).to(_head(teacher))


def _finished(teacher: Teacher, logits: Tensor, place: slice | Tensor) -> Tensor:
    """Products with the head's weights of the tokens at a place, in float32, as the model makes logits of them."""
    logits = logits.float()
    if teacher.head_bias is not None:
        logits = logits + teacher.head_bias[place].float()
    if teacher.logit_scale != 1:
        logits = logits * teacher.logit_scale
    if teacher.softcap:
        logits = torch.tanh(logits / teacher.softcap) * teacher.softcap
    return logits
