"""``head``: the checkpoint with Transformers' classification or multiple-choice head; an encoder, or a decoder."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Self

import torch
from torch import Tensor

from probekd.config import StudentConfig
from probekd.student.embed import pooled
from probekd.student.inputs import Encoded, encode, pad
from probekd.student.kinds.base import present_options
from probekd.student.load import (
    check_classifier,
    is_decoder,
    load_classifier,
    load_config,
    load_tokenizer,
    save_network,
    usable_length,
)
from probekd.tasks.base import Example, Task

_CLASSIFICATION = """from transformers import pipeline

classify = pipeline("text-classification", "path/to/this/directory", truncation=True, max_length={max_length})
classify("some text")"""

_MULTIPLE_CHOICE = """import torch
from transformers import AutoModelForMultipleChoice, AutoTokenizer

tokenizer = AutoTokenizer.from_pretrained("path/to/this/directory")
model = AutoModelForMultipleChoice.from_pretrained("path/to/this/directory")
question, options = "some question", ["one option", "another option"]
cut = {{"truncation": "only_first", "max_length": {max_length}}}
pairs = tokenizer([question] * len(options), options, padding=True, return_tensors="pt", **cut)
with torch.inference_mode():
    logits = model(**{{name: tensor[None] for name, tensor in pairs.items()}}).logits  # (1, options)
print(options[logits.argmax()])"""


@dataclass(frozen=True, kw_only=True, eq=False)
class Head:
    """See ``StudentKind``. A text longer than ``max_length`` loses the end of its question, never of its option."""

    network: Any
    tokenizer: Any
    max_length: int
    task: Task

    @classmethod
    def prepare(cls, source: str | Path, task: Task, config: StudentConfig) -> Self:
        """See ``StudentKind``."""
        check_classifier(source, task.kind, config)
        tokenizer = load_tokenizer(source, config)
        length = usable_length(tokenizer, load_config(source, config), config.max_length)
        known = Task(name=task.name, kind=task.kind, splits={}, labels=task.labels)
        return cls(network=None, tokenizer=tokenizer, max_length=length, task=known)

    @classmethod
    def load(cls, source: str | Path, task: Task, config: StudentConfig) -> Self:
        """See ``StudentKind``; a head that the checkpoint lacks starts at random."""
        ready = cls.prepare(source, task, config)
        network = load_classifier(source, task.kind, task.labels, ready.tokenizer.pad_token_id, config)
        return replace(ready, network=network)

    @property
    def pipeline_tag(self) -> str:
        """See ``StudentKind``."""
        return "text-classification" if self.task.kind == "classification" else "multiple-choice"

    @property
    def usage(self) -> str:
        """See ``StudentKind``."""
        code = _CLASSIFICATION if self.task.kind == "classification" else _MULTIPLE_CHOICE
        return code.format(max_length=self.max_length)

    def encode(self, examples: Sequence[Example]) -> list[Encoded]:
        """See ``inputs.encode``."""
        return encode(self.tokenizer, examples, self.task.kind, self.max_length)

    def collate(self, rows: Sequence[Encoded]) -> dict[str, Tensor]:
        """Model inputs: (b, tokens) for classification; (b, k, tokens), and ``present`` (b, k), for multiple choice.

        Rows with fewer options than the batch's most get copies of their option 0, marked as not present.
        """
        if self.task.kind == "classification":
            return pad(self.tokenizer, [row.sequences[0] for row in rows])
        present = present_options(rows)
        k = present.shape[1]
        padded = [(*row.sequences, *(row.sequences[0],) * k)[:k] for row in rows]
        inputs = pad(self.tokenizer, [sequence for sequences in padded for sequence in sequences])
        return {**{name: tensor.view(len(rows), k, -1) for name, tensor in inputs.items()}, "present": present}

    def logits(self, network: Any, batch: dict[str, Tensor]) -> Tensor:
        """See ``StudentKind``: the head's own."""
        inputs = {name: tensor for name, tensor in batch.items() if name != "present"}
        logits: Tensor = network(**inputs).logits.float()
        return logits.masked_fill(~batch["present"], -torch.inf) if "present" in batch else logits

    @property
    def reads_options(self) -> bool:
        """See ``StudentKind``."""
        return self.task.kind == "multiple_choice"

    def states(self, hidden: Tensor, batch: dict[str, Tensor]) -> Tensor:
        """See ``StudentKind``: the mean over a text's tokens, for a decoder its last token's."""
        found = pooled(hidden, batch["attention_mask"].flatten(0, -2), last=is_decoder(self.network.config))
        return found[batch["present"].flatten()] if "present" in batch else found

    def save(self, directory: Path) -> None:
        """See ``StudentKind``."""
        save_network(self.network, self.tokenizer, directory)
