"""``static``: a linear head on a frozen encoder's embedding, the cheapest student; its learning is a convex problem."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Self

import torch
from torch import Tensor

from probekd.config import StudentConfig
from probekd.errors import ModelError
from probekd.files import save_tensors
from probekd.student.embed import Embedder, pooled
from probekd.student.inputs import Encoded, encode, pad
from probekd.student.kinds.base import present_options
from probekd.student.load import load_config, load_encoder, load_tokenizer, save_network, usable_length
from probekd.tasks.base import Example, Task

HEAD_FILE = "head.safetensors"

_USAGE = """import torch
from safetensors.torch import load_file
from transformers import AutoModel, AutoTokenizer

directory = "path/to/this/directory"
tokenizer, encoder = AutoTokenizer.from_pretrained(directory), AutoModel.from_pretrained(directory).eval()
head = load_file(f"{{directory}}/head.safetensors")
texts = {texts}
batch = tokenizer({arguments}, padding=True, truncation="only_first", max_length={max_length}, return_tensors="pt")
with torch.inference_mode():
    states, mask = encoder(**batch).last_hidden_state, batch["attention_mask"][..., None]
    embeddings = {pooled}
print({answer})"""


class StaticNetwork(torch.nn.Module):
    """The encoder, its pooling and the head; it scores sequences, one for a text or one for each option."""

    def __init__(self, embedder: Embedder, outputs: int) -> None:
        super().__init__()
        self.embedder = embedder.requires_grad_(False)
        self.head = torch.nn.Linear(embedder.width, outputs)
        torch.nn.init.zeros_(self.head.weight)
        torch.nn.init.zeros_(self.head.bias)

    @property
    def device(self) -> torch.device:
        """Where its weights are."""
        return self.head.weight.device

    def forward(self, **batch: Tensor) -> Tensor:
        """Scores (s, K), or (s, 1) of options."""
        scores: Tensor = self.head(self.embedder(**batch))
        return scores


@dataclass(frozen=True, kw_only=True, eq=False)
class Static:
    """See ``StudentKind``. The directory is the encoder's own, and the head lies beside it."""

    network: Any
    tokenizer: Any
    max_length: int
    task: Task

    @classmethod
    def prepare(cls, source: str | Path, task: Task, config: StudentConfig) -> Self:
        """See ``StudentKind``."""
        tokenizer = load_tokenizer(source, config)
        length = usable_length(tokenizer, load_config(source, config), config.max_length)
        known = Task(name=task.name, kind=task.kind, splits={}, labels=task.labels)
        return cls(network=None, tokenizer=tokenizer, max_length=length, task=known)

    @classmethod
    def load(cls, source: str | Path, task: Task, config: StudentConfig) -> Self:
        """See ``StudentKind``; without a head of its own, every option is as likely as another."""
        network = StaticNetwork(Embedder(load_encoder(source, config)), len(task.labels) or 1)
        head = Path(source) / HEAD_FILE
        if head.is_file():
            _load_head(network, head)
        return replace(cls.prepare(source, task, config), network=network.eval())

    @property
    def pipeline_tag(self) -> str:
        """See ``StudentKind``."""
        return "text-classification" if self.task.kind == "classification" else "multiple-choice"

    @property
    def usage(self) -> str:
        """See ``StudentKind``."""
        scores = 'embeddings @ head["weight"].T + head["bias"]'
        mean = "(states * mask).sum(1) / mask.sum(1)"
        last = "states[torch.arange(len(states)), mask[..., 0].sum(1) - 1]"
        one = self.task.kind == "classification"
        return _USAGE.format(
            texts='["some text"]' if one else '["some question"] * 2, ["one option", "another option"]',
            arguments="texts" if one else "*texts",
            max_length=self.max_length,
            pooled=last if self.network.embedder.last else mean,
            answer=f"({scores}).argmax(1)" if one else f"texts[1][({scores}).argmax()]",
        )

    def encode(self, examples: Sequence[Example]) -> list[Encoded]:
        """See ``inputs.encode``."""
        return encode(self.tokenizer, examples, self.task.kind, self.max_length)

    def collate(self, rows: Sequence[Encoded]) -> dict[str, Tensor]:
        """Model inputs (s, tokens) of all sequences of all rows, and ``present`` (b, k)."""
        inputs = pad(self.tokenizer, [sequence for row in rows for sequence in row.sequences])
        return {**inputs, "present": present_options(rows)}

    def logits(self, network: Any, batch: dict[str, Tensor]) -> Tensor:
        """See ``StudentKind``."""
        inputs = {name: tensor for name, tensor in batch.items() if name != "present"}
        scores: Tensor = network(**inputs).float()
        if self.task.kind == "classification":
            return scores
        present = batch["present"]
        return scores.new_full(present.shape, -torch.inf).masked_scatter(present, scores[:, 0])

    @property
    def reads_options(self) -> bool:
        """See ``StudentKind``."""
        return self.task.kind == "multiple_choice"

    def states(self, hidden: Tensor, batch: dict[str, Tensor]) -> Tensor:
        """See ``StudentKind``: the embeddings."""
        return pooled(hidden, batch["attention_mask"], last=self.network.embedder.last)

    def save(self, directory: Path) -> None:
        """See ``StudentKind``."""
        save_network(self.network.embedder.encoder, self.tokenizer, directory)
        head = {name: tensor.detach().cpu().contiguous() for name, tensor in self.network.head.state_dict().items()}
        save_tensors(head, directory / HEAD_FILE, {})


def _load_head(network: StaticNetwork, path: Path) -> None:
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        network.head.load_state_dict(load_file(path))
    except (SafetensorError, RuntimeError) as error:
        reason = str(error).splitlines()[0]
        raise ModelError(f"{path}: not the head of this student ({reason}); train the student again") from None
