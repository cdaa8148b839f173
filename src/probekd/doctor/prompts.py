"""Prompts against the tokenizer's own reading of the same text."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from probekd.config import Layout
from probekd.prompts import PromptEncoder
from probekd.tasks.base import Example
from probekd.tasks.orders import Order

Tokens = list[int]


@dataclass(frozen=True, kw_only=True)
class Plain:
    """Prompts as a user of Transformers would make them: rendered as text, and given to the tokenizer.

    Attributes:
        encoder: The encoder that is checked; its templates and its blanks are taken, its tokens are not.
    """

    encoder: PromptEncoder

    def sequences(self, row: Example, layout: Layout, orders: Sequence[Order]) -> list[Tokens]:
        """Tokens of each of the row's sequences."""
        if layout == "branched":
            start = self._said(row, layout) + self.encoder.joiner
            return [self.tokens(start + option) for option in row.options]
        shown = (replace(row, options=tuple(row.options[i] for i in order)) for order in orders)
        return [self.tokens(self._said(e, layout) + self.encoder.cue) for e in shown]

    def labels(self, row: Example) -> list[int | None]:
        """First token of each answer after the prompt; None where the prompt does not end where it did without it."""
        encoder = self.encoder
        start = self._said(row, "listed") + encoder.cue
        before, rest = self.tokens(start), "" if encoder.cue else encoder.joiner
        found: list[int | None] = []
        for answer in encoder.texts.answers(row, "listed"):
            tokens = self.tokens(start + rest + answer)
            found.append(tokens[len(before)] if tokens[: len(before)] == before != tokens else None)
        return found

    def tokens(self, text: str) -> Tokens:
        """``tokenizer(text)``; of a causal model without what the tokenizer puts behind the text."""
        tokenizer, chat = self.encoder.tokenizer, self.encoder.task.prompt.chat
        whole = self._ids(text, special=not chat)
        if self.encoder.encoder or chat:
            return whole
        bare = self._ids(text, special=False)
        last = next(i for i in range(len(whole)) if whole[i : i + len(bare)] == bare) + len(bare)
        assert tokenizer is not None
        return whole[:last]

    def leading(self, text: str = "A") -> Tokens:
        """What the tokenizer puts before a text by itself."""
        return self._ids(text, special=True)[:1]

    def _ids(self, text: str, *, special: bool) -> Tokens:
        return list(self.encoder.tokenizer(text, add_special_tokens=special, verbose=False)["input_ids"])

    def _said(self, row: Example, layout: Layout) -> str:
        text = self.encoder.texts.text(row, layout)
        prompt = self.encoder.task.prompt
        if not prompt.chat:
            return text
        messages = [*([{"role": "system", "content": prompt.system}] if prompt.system else [])]
        messages.append({"role": "user", "content": text})
        return str(self.encoder.tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True))
