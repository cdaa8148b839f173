"""What every kind of student can do, so that training, prediction and export need not know which one they hold."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Protocol, Self

import torch
from torch import Tensor

from probekd.config import StudentConfig
from probekd.student.inputs import Encoded
from probekd.tasks.base import Example, Task


class StudentKind(Protocol):
    """A loaded student: its network, its tokenizer, and how the two answer a row.

    A kind is one file here and one line in ``KINDS``. Its directory is a plain Transformers one.

    Attributes:
        network: The Transformers model, which the Trainer trains.
        tokenizer: Its tokenizer.
        max_length: Tokens a text may have.
        task: What it must know of its task to read rows again: kind, labels, prompt, and the worked examples shown.
        pipeline_tag: The Hub's name for what the directory does.
        usage: Python code that loads the directory and answers a row with Transformers alone; for the model card.
        reads_options: Whether each option of a row has a state of its own; else the row has one.
    """

    @property
    def network(self) -> Any: ...  # noqa: D102
    @property
    def tokenizer(self) -> Any: ...  # noqa: D102
    @property
    def max_length(self) -> int: ...  # noqa: D102
    @property
    def task(self) -> Task: ...  # noqa: D102
    @property
    def pipeline_tag(self) -> str: ...  # noqa: D102
    @property
    def usage(self) -> str: ...  # noqa: D102
    @property
    def reads_options(self) -> bool: ...  # noqa: D102

    @classmethod
    def prepare(cls, source: str | Path, task: Task, config: StudentConfig) -> Self:
        """As ``load``, but without the network: it can encode rows and nothing else, and is there at once.

        Raises:
            ConfigError: options that a network of this architecture cannot follow.
            ModelError: an architecture that the kind cannot use, or no tokenizer.
        """
        ...

    @classmethod
    def load(cls, source: str | Path, task: Task, config: StudentConfig) -> Self:
        """Load a checkpoint to train, or a student's directory to use.

        Args:
            source: A local Transformers directory or a Hub id.
            task: Its kind, labels, prompt and worked examples; its other rows are not looked at.
            config: Revision, length and whatever the kind can be asked for.

        Raises:
            ModelError: a checkpoint that cannot be used.
        """
        ...

    def encode(self, examples: Sequence[Example]) -> list[Encoded]:
        """Tokenise rows; their answers are not looked at.

        Raises:
            DataError: a row that does not fit ``max_length`` and cannot be cut.
        """
        ...

    def collate(self, rows: Sequence[Encoded]) -> dict[str, Tensor]:
        """One batch of b rows for ``logits``, padded on the right; rows may differ in their number of options."""
        ...

    def logits(self, network: Any, batch: dict[str, Tensor]) -> Tensor:
        """One logit an option: float32 of shape (b, k), -inf where a row has no such option.

        Args:
            network: ``self.network``, or what Trainer has wrapped it in.
            batch: What ``collate`` gave, on the network's device.
        """
        ...

    def states(self, hidden: Tensor, batch: dict[str, Tensor]) -> Tensor:
        """The states (m, d) that the batch's rows are read by: one a row, or one for each of its options, row by row.

        Args:
            hidden: The body's last hidden state of all its sequences, (s, tokens, d).
            batch: What ``collate`` gave.
        """
        ...

    def save(self, directory: Path) -> None:
        """Write network and tokenizer so that ``load`` and plain Transformers read them."""
        ...


class Answering(Protocol):
    """Of a student what answering rows in tokens takes; its network may be another's, such as ONNX Runtime's."""

    @property
    def network(self) -> Any: ...  # noqa: D102
    def collate(self, rows: Sequence[Encoded]) -> dict[str, Tensor]: ...  # noqa: D102
    def logits(self, network: Any, batch: dict[str, Tensor]) -> Tensor: ...  # noqa: D102


def present_options(rows: Sequence[Encoded]) -> Tensor:
    """Which of the k options, as many as any row has, each row has: bool of shape (b, k)."""
    counts = torch.tensor([row.options for row in rows])
    return torch.arange(int(counts.max())) < counts[:, None]
