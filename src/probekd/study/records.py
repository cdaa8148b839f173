"""A cell's record: its scores, and each test row's outcome in three bytes, for comparisons that are paired."""

from __future__ import annotations

import base64
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from probekd.metrics import correct, log_losses, score

FORMAT = 1


@dataclass(frozen=True, kw_only=True)
class Outcomes:
    """What became of each test row, in the order of the task's test split.

    Attributes:
        hits: (t,) bool.
        losses: (t,) log-loss in nats, float16: three digits, of which a mean over rows loses nothing.
    """

    hits: np.ndarray
    losses: np.ndarray

    @classmethod
    def of(cls, probs: Sequence[np.ndarray], answers: Sequence[int]) -> Outcomes:
        """Outcomes of distributions by row."""
        return cls(hits=correct(probs, answers), losses=log_losses(probs, answers).astype(np.float16))

    def as_dict(self) -> dict[str, Any]:
        """JSON object: bytes in base64."""
        packed = {"hits": np.packbits(self.hits).tobytes(), "losses": self.losses.astype("<f2").tobytes()}
        return {"rows": len(self.hits), **{name: base64.b64encode(data).decode() for name, data in packed.items()}}

    @classmethod
    def from_dict(cls, value: Mapping[str, Any]) -> Outcomes:
        """What ``as_dict`` gave."""
        hits, losses = (
            np.frombuffer(base64.b64decode(value[name]), kind) for name, kind in (("hits", "u1"), ("losses", "<f2"))
        )
        return cls(hits=np.unpackbits(hits, count=value["rows"]).astype(bool), losses=losses)


def record(
    settings: Mapping[str, Any], probs: Sequence[np.ndarray], answers: Sequence[int], **more: Any
) -> dict[str, Any]:
    """A cell's JSON object: settings, scores, ``more``, and outcomes."""
    return {
        "format": FORMAT,
        "settings": dict(settings),
        "scores": dict(score(probs, answers)),
        **more,
        "outcomes": Outcomes.of(probs, answers).as_dict(),
    }
