"""What the kinds share that answer in words: a language model whose log-probabilities of a few tokens are read."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Self

import torch
from torch import Tensor

from probekd.config import StudentConfig
from probekd.errors import DataError
from probekd.prompts import PromptEncoder, TokenSequence
from probekd.student.inputs import Encoded
from probekd.student.kinds.base import present_options
from probekd.student.load import check_decoder, load_config, load_decoder, read_tokenizer, save_network, usable_length
from probekd.tasks.base import Example, Task


@dataclass(frozen=True, kw_only=True, eq=False)
class Decoder:
    """See ``StudentKind``: all but how a row is encoded. A prompt longer than ``max_length`` is refused, never cut.

    Attributes:
        prompts: Shows rows as the teacher is shown them, to this tokenizer.
    """

    network: Any
    tokenizer: Any
    max_length: int
    prompts: PromptEncoder
    config: StudentConfig

    @classmethod
    def prepare(cls, source: str | Path, task: Task, config: StudentConfig) -> Self:
        """See ``StudentKind``."""
        check_decoder(source, config)
        tokenizer = read_tokenizer(source, config)
        length = usable_length(tokenizer, load_config(source, config), config.max_length)
        prompts = PromptEncoder(tokenizer, shown(task))
        return cls(network=None, tokenizer=tokenizer, max_length=length, prompts=prompts, config=config)

    @classmethod
    def load(cls, source: str | Path, task: Task, config: StudentConfig) -> Self:
        """See ``StudentKind``."""
        return replace(cls.prepare(source, task, config), network=load_decoder(source, config))

    @property
    def task(self) -> Task:
        """See ``StudentKind``."""
        return self.prompts.task

    @property
    def pipeline_tag(self) -> str:
        """See ``StudentKind``."""
        return "text-generation"

    def collate(self, rows: Sequence[Encoded]) -> dict[str, Tensor]:
        """One batch of b rows with s sequences, none of which is padded with copies of options.

        Returns:
            ``input_ids`` (s, tokens), padded on the right; ``at`` (p,), the places in the flattened ``input_ids`` after
            which something is read; for each of m tokens ``read``, an index into ``at``, ``token``, ``weight``, and
            ``slot``, where its option stands in the flattened (b, k); ``ends`` (s,), the place of each sequence's last
            token; ``present`` (b, k).
        """
        present = present_options(rows)
        k = present.shape[1]
        sequences = [s["input_ids"] for row in rows for s in row.sequences]
        inputs = pad_right(sequences)
        length = inputs.shape[1]
        places, slots, first = [], [], 0
        for i, row in enumerate(rows):
            places += [(first + said.sequence) * length + said.at for said in row.said]
            slots += [i * k + said.option for said in row.said]
            first += len(row.sequences)
        at, read = torch.tensor(places).unique(return_inverse=True)
        said = [said for row in rows for said in row.said]
        return {
            "present": present,
            "input_ids": inputs,
            "at": at,
            "read": read,
            "token": torch.tensor([s.token for s in said]),
            "weight": torch.tensor([s.weight for s in said]),
            "slot": torch.tensor(slots),
            "ends": torch.tensor([number * length + len(ids) - 1 for number, ids in enumerate(sequences)]),
        }

    def logits(self, network: Any, batch: dict[str, Tensor]) -> Tensor:
        """See ``StudentKind``: an option's logit is the weighted sum of the log-probabilities of what says it."""
        with _reading(self.network.get_output_embeddings(), batch["at"]):
            words = network(input_ids=batch["input_ids"], use_cache=False).logits[0].float()  # (p, vocabulary)
        said = words[batch["read"], batch["token"]] - words.logsumexp(dim=-1)[batch["read"]]  # (m,)
        present = batch["present"]
        logits = torch.zeros(present.numel(), device=said.device)
        logits = logits.index_add(0, batch["slot"], said * batch["weight"])
        return logits.view(present.shape).masked_fill(~present, -torch.inf)

    def states(self, hidden: Tensor, batch: dict[str, Tensor]) -> Tensor:
        """See ``StudentKind``: the state after all of the prompt, or after all of each option."""
        return hidden.flatten(0, 1)[batch["ends"]]

    def save(self, directory: Path) -> None:
        """See ``StudentKind``."""
        save_network(self.network, self.tokenizer, directory)


def pad_right(sequences: Sequence[Sequence[int]]) -> Tensor:
    """Token ids of s sequences as (s, longest)."""
    # No later token changes an earlier state of a causal model, so padding is any token, and needs no mask.
    inputs = torch.zeros((len(sequences), max(map(len, sequences))), dtype=torch.long)
    for padded, ids in zip(inputs, sequences, strict=True):
        padded[: len(ids)] = torch.tensor(ids)
    return inputs


def check_length(example: Example, sequence: TokenSequence, max_length: int) -> None:
    """Raise DataError unless a prompt fits."""
    if len(sequence.tokens) > max_length:
        raise DataError(
            f"row {example.id!r}: its prompt has {len(sequence.tokens)} tokens and the student reads {max_length}; "
            "a cut prompt would ask something else, so raise student.max_length, shorten the prompt, or take a "
            "student with a longer context"
        )


@contextmanager
def _reading(head: Any, at: Tensor) -> Iterator[None]:
    """Let a model's output embedding see the states at ``at`` (p,) alone, so that its logits have shape (1, p, words).

    The states are picked on the way into the head, so that the full logits (b, tokens, words) never exist, and whatever
    an architecture does after its head (soft caps, scales) is done to these few; and the forward pass that is called is
    the model's own, as DDP, FSDP and autocast need it.
    """
    handle = head.register_forward_pre_hook(lambda _, inputs: (inputs[0].flatten(0, -2)[at][None],))
    try:
        yield
    finally:
        handle.remove()


def example_of(task: Task) -> Example:
    """A made-up row, for the code of the model card; its subject is one that has worked examples."""
    subject = next((e.subject for e in task.rows(*task.splits)), "")
    choice = task.kind == "multiple_choice"
    question, options = ("some question", ("one option", "another option")) if choice else ("some text", task.labels)
    return Example(id="example", question=question, options=options, subject=subject)


def shown(task: Task) -> Task:
    """What of a task its prompts show besides the row: prompt, labels, and the worked examples that are used.

    A student reads a row in its own order of options, in however many the teacher is shown it.
    """
    kept: list[Example] = []
    for example in task.rows(task.prompt.shots_from) if task.prompt.shots else []:
        before = sum(e.subject == example.subject for e in kept)
        if example.answer is not None and before < task.prompt.shots:
            kept.append(example)
    splits = {task.prompt.shots_from: tuple(kept)} if kept else {}
    prompt = task.prompt.model_copy(update={"permutations": 1})
    return Task(name=task.name, kind=task.kind, splits=splits, labels=task.labels, prompt=prompt)
