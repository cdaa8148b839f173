"""What a training step minimises: the student's network with all that is learnt beside it and thrown away after."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn
from transformers import MODEL_MAPPING

from probekd.config import HiddenConfig
from probekd.errors import ConfigError
from probekd.student.kinds import StudentKind
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
        matched: Tensor = self.match(inputs, batch["states"], batch["has_state"])
        return losses + matched


class HiddenMatch(nn.Module):
    """``weight * mean over the row's states of D(W s + b, t)``: s the state that the student reads, t the teacher's.

    W and b are learnt with the student and are no part of it afterwards (FitNets, arXiv 1412.6550). s is of the last hidden
    state, where the kind of student reads it (``StudentKind.states``). t is standardised.
    """

    def __init__(self, kind: StudentKind, width: int, config: HiddenConfig) -> None:
        """Watch the body of the student's network.

        Args:
            kind: The student.
            width: d of the teacher's states.
            config: Distance and weight.

        Raises:
            ConfigError: the network has no body whose states could be matched.
        """
        super().__init__()
        network = kind.network
        adapted = network.get_base_model() if hasattr(network, "get_base_model") else network
        body = getattr(adapted, "base_model", None)
        architecture = adapted.config.get_text_config()
        # A network whose body has another name than its class says is its own body to Transformers, as a bare one is.
        bodies: Any = MODEL_MAPPING
        bare = type(adapted) is bodies.get(type(adapted.config), None)
        if body is None or (body is adapted and not bare) or not hasattr(architecture, "hidden_size"):
            raise ConfigError(
                f"hidden states cannot be matched for a student of type {type(adapted).__name__}, whose body Transformers "
                "does not know; take another model, or another method than hidden-kd"
            )
        self.kind = kind
        self.projection = nn.Linear(architecture.hidden_size, width)
        self.distance = HIDDEN_LOSSES[config.loss]
        self.weight = config.weight
        self._hidden: Tensor | None = None
        body.register_forward_hook(self._keep)

    def _keep(self, module: nn.Module, inputs: Any, output: Any) -> None:
        self._hidden = output[0]

    def forward(self, inputs: dict[str, Tensor], teacher: Tensor, has_state: Tensor) -> Tensor:
        """Loss of each row, (b,), from the body's latest pass.

        Args:
            inputs: The batch of that pass, as the kind of student collates it.
            teacher: (b, s, d).
            has_state: Which of them there are, (b, s).
        """
        assert self._hidden is not None, "the network has not been run"
        mine = self.kind.states(self._hidden.float(), inputs)
        self._hidden = None
        distances = self.distance(self.projection(mine), teacher[has_state])  # (m,)
        by_row = distances.new_zeros(has_state.shape).masked_scatter(has_state, distances)
        return self.weight * by_row.sum(dim=1) / has_state.sum(dim=1)
