"""What a training step minimises: the student's network with all that is learnt beside it and thrown away after."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from probekd.config import HiddenConfig
from probekd.errors import ConfigError
from probekd.student.embed import pooled
from probekd.student.kinds import StudentKind
from probekd.student.load import is_decoder
from probekd.student.losses import HIDDEN_LOSSES, row_losses
from probekd.student.losses.base import Divergence

_MINE = ("target_logits", "answers", "gold_weights", "soft_weights", "states", "has_state")


class Objective(nn.Module):
    """Rows of a batch to their losses.

    Attributes:
        network: The student's.
        match: Its hidden states against the teacher's; None = not matched.
    """

    def __init__(
        self, kind: StudentKind, *, divergence: Divergence, temperature: float, match: HiddenMatch | None = None
    ) -> None:
        """Take the student, what ``row_losses`` takes, and the matching of hidden states."""
        super().__init__()
        self.kind = kind
        self.network = kind.network
        self.match = match
        self.divergence = divergence
        self.temperature = temperature

    def forward(self, batch: dict[str, Tensor]) -> Tensor:
        """Loss of each row of a batch of ``rows.collate``: (b,) in float32."""
        inputs = {name: tensor for name, tensor in batch.items() if name not in _MINE}
        losses = row_losses(
            self.kind.logits(self.network, inputs),
            *(batch[name] for name in ("target_logits", "answers", "gold_weights", "soft_weights")),
            divergence=self.divergence,
            temperature=self.temperature,
        )
        if self.match is None:
            return losses
        matched: Tensor = self.match(inputs["attention_mask"], batch["states"], batch["has_state"])
        return losses + matched


class HiddenMatch(nn.Module):
    """``weight * mean over the row's states of D(W s + b, t)``: s the student's pooled state, t the teacher's.

    W and b are learnt with the student and are no part of it afterwards (FitNets, arXiv 1412.6550). s is the mean over a
    text's tokens of the last hidden state, for a decoder its last token's (``embed.pooled``). t is standardised.
    """

    def __init__(self, network: Any, width: int, config: HiddenConfig) -> None:
        """Watch the network's body.

        Args:
            network: A Transformers model with a head.
            width: d of the teacher's states.
            config: Distance and weight.

        Raises:
            ConfigError: the network has no body whose states could be matched.
        """
        super().__init__()
        adapted = network.get_base_model() if hasattr(network, "get_base_model") else network
        body = getattr(adapted, "base_model", adapted)
        if body is adapted or not hasattr(network.config, "hidden_size"):
            raise ConfigError(
                f"hidden states cannot be matched for a student of type {type(adapted).__name__}; take one with a body "
                "of transformer blocks (student.kind: head)"
            )
        self.projection = nn.Linear(network.config.hidden_size, width)
        self.distance = HIDDEN_LOSSES[config.loss]
        self.weight = config.weight
        self.last = is_decoder(network.config)
        self._states: Tensor | None = None
        body.register_forward_hook(self._keep)

    def _keep(self, module: nn.Module, inputs: Any, output: Any) -> None:
        self._states = output[0]

    def forward(self, mask: Tensor, teacher: Tensor, has_state: Tensor) -> Tensor:
        """Loss of each row, (b,), from the body's latest pass.

        Args:
            mask: Attention mask of the pass, (b, tokens), or (b, s, tokens) where a row is several sequences.
            teacher: (b, s, d).
            has_state: Which of them there are, (b, s).
        """
        assert self._states is not None, "the network has not been run"
        mine = pooled(self._states.float(), mask.flatten(0, -2), last=self.last)
        self._states = None
        distances = self.distance(self.projection(mine).view_as(teacher), teacher)  # (b, s)
        return self.weight * torch.where(has_state, distances, 0.0).sum(dim=1) / has_state.sum(dim=1)
