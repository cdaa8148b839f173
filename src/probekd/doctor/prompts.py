"""Prompts against the tokenizer's own reading of the same text."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from probekd.config import Layout
from probekd.doctor.report import Check
from probekd.doctor.sample import Sheet
from probekd.errors import DataError
from probekd.prompts import PromptEncoder, orders_read
from probekd.tasks.base import Example
from probekd.tasks.orders import option_orders

Tokens = tuple[int, ...]


@dataclass(frozen=True, kw_only=True)
class Plain:
    """Prompts as a user of Transformers would make them: rendered as text, and given to the tokenizer.

    Attributes:
        encoder: The encoder that is checked; its templates and blanks are taken as they are, its tokens are not.
    """

    encoder: PromptEncoder

    def sequences(self, row: Example, layout: Layout) -> list[Tokens]:
        """Tokens of each of the row's sequences."""
        if layout == "branched":
            start = self._said(row, layout) + self.encoder.joiner
            return [self.tokens(start + option) for option in row.options]
        task = self.encoder.task
        orders = option_orders(row.id, len(row.options), orders_read(task.kind, layout, task.prompt))
        shown = (replace(row, options=tuple(row.options[i] for i in order)) for order in orders)
        return [self.tokens(self._said(e, layout) + self.encoder.cue) for e in shown]

    def unread(self, row: Example) -> str:
        """The end of the ``listed`` prompt that the tokenizer makes no token of, where that holds a letter or digit."""
        text = self._said(row, "listed")
        offsets = self.encoder.tokenizer(text, return_offsets_mapping=True, verbose=False)["offset_mapping"]
        rest = text[max((stop for _, stop in offsets), default=0) :]
        return rest if any(c.isalnum() for c in rest) else ""

    def labels(self, row: Example) -> list[int | None]:
        """First token of each answer after the ``listed`` prompt; None where it merges with the prompt's last one."""
        encoder = self.encoder
        start = self._said(row, "listed") + encoder.cue
        before, rest = self.tokens(start), "" if encoder.cue else encoder.joiner
        found: list[int | None] = []
        for answer in encoder.texts.answers(row, "listed"):
            tokens = self.tokens(start + rest + answer)
            found.append(tokens[len(before)] if tokens[: len(before)] == before != tokens else None)
        return found

    def tokens(self, text: str) -> Tokens:
        """``tokenizer(text)``, of a causal model without what the tokenizer puts behind the text."""
        if self.encoder.task.prompt.chat:
            return self.ids(text, special=False)
        whole = self.ids(text, special=True)
        if self.encoder.encoder:
            return whole
        bare = self.ids(text, special=False)
        ends = (i + len(bare) for i in range(len(whole)) if whole[i : i + len(bare)] == bare)
        return whole[: next(ends, len(whole))]

    def ids(self, text: str, *, special: bool) -> Tokens:
        """What the tokenizer makes of a text."""
        return tuple(self.encoder.tokenizer(text, add_special_tokens=special, verbose=False)["input_ids"])

    def _said(self, row: Example, layout: Layout) -> str:
        text = self.encoder.texts.text(row, layout)
        prompt = self.encoder.task.prompt
        if not prompt.chat:
            return text
        messages = [{"role": "system", "content": prompt.system}] if prompt.system else []
        messages.append({"role": "user", "content": text})
        return str(self.encoder.tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True))


def check_bos(plain: Plain, sequences: Sequence[Tokens]) -> Check:
    """Count the BOS tokens that prompts begin with: a template may write one, and the tokenizer add another."""
    opening, tokenizer = plain.encoder.opening, plain.encoder.tokenizer
    if not opening:
        return Check(name="BOS", finding="ok", text="the tokenizer has none")
    bos = tokenizer.convert_tokens_to_ids(opening)
    counts = {next((i for i, token in enumerate(tokens) if token != bos), len(tokens)) for tokens in sequences}
    most = max(counts)
    if most > 1:
        return Check(
            name="BOS",
            finding="fault",
            text=f"double BOS: prompts begin with {most} BOS tokens; the template writes one and the tokenizer adds one",
        )
    added = plain.ids("A", special=True)[:1] == (bos,)
    if added and 0 in counts:
        return Check(name="BOS", finding="warning", text="prompts begin with no BOS, which the tokenizer adds to text")
    return Check(name="BOS", finding="ok", text="prompts begin with one" if most else "the tokenizer adds none")


def check_tokens(plain: Plain, sheets: Sequence[Sheet]) -> Check:
    """Compare every sequence with ``tokenizer(text)``, and see that an ``answer`` is read where one would begin."""
    count = number = 0
    for sheet in sheets:
        for row, prompt in zip(sheet.rows, sheet.prompts, strict=True):
            for sequence, theirs in zip(prompt.sequences, plain.sequences(row, sheet.layout), strict=True):
                where = f"row {row.id!r}, {sheet.layout}"
                if sequence.tokens != theirs:
                    return Check(name="tokens", finding="fault", text=f"{where}: {_apart(sequence.tokens, theirs)}")
                last = 0 if plain.encoder.encoder else len(theirs) - 1
                if sheet.layout == "listed" and sequence.answer != last:
                    text = f"{where}: the answer is read at token {sequence.answer} and not at {last}"
                    return Check(name="tokens", finding="fault", text=text)
                count, number = count + 1, number + len(theirs)
            if sheet.layout == "listed" and (unread := plain.unread(row)):
                text = f"{where}: the prompt is truncated: the tokenizer drops its end, {unread!r}"
                return Check(name="tokens", finding="fault", text=text)
    text = f"{count} sequences of {number} tokens in all are those of the tokenizer"
    return Check(name="tokens", finding="ok", text=text)


def find_cut(plain: Plain, rows: Sequence[Example], layouts: Sequence[Layout]) -> Check | None:
    """The first row whose options or answer the encoder finds no tokens for; None where there is none."""
    for row in rows:
        for layout in layouts:
            try:
                plain.encoder.encode(row, layout)
            except DataError as error:
                text = f"row {row.id!r}, {layout}: the prompt is truncated, or a part of it dropped: {error}"
                return Check(name="tokens", finding="fault", text=text)
    return None


def _apart(ours: Tokens, theirs: Tokens) -> str:
    if len(ours) < len(theirs) and ours in (theirs[: len(ours)], theirs[len(theirs) - len(ours) :]):
        return f"the prompt is truncated: {len(ours)} of its {len(theirs)} tokens are read"
    first = next((i for i, (a, b) in enumerate(zip(ours, theirs, strict=False)) if a != b), min(len(ours), len(theirs)))
    return f"{len(ours)} tokens, of which the tokenizer makes {len(theirs)}; they differ from token {first} on"


def check_labels(plain: Plain, sheets: Sequence[Sheet]) -> Check:
    """Compare label tokens with the first tokens that the answers have after the prompt, and with each other."""
    tokenizer = plain.encoder.tokenizer
    merged, shared, count = "", "", 0
    for sheet in (s for s in sheets if s.labels is not None):
        for row, ours in zip(sheet.rows, sheet.labels or (), strict=True):
            answers = plain.encoder.texts.answers(row, sheet.layout)
            for answer, mine, theirs in zip(answers, ours, plain.labels(row), strict=True):
                if theirs is None:
                    merged = merged or f"row {row.id!r}: {answer!r} merges with the last token of the prompt"
                elif mine != theirs:
                    spelt = f"{tokenizer.decode([mine])!r}, and it begins with {tokenizer.decode([theirs])!r}"
                    text = f"row {row.id!r}: the label token of {answer!r} is {spelt}"
                    return Check(name="labels", finding="fault", text=text)
            twice = next((i for i, token in enumerate(ours) if token in ours[:i]), None)
            if twice is not None:
                pair = f"{answers[ours.index(ours[twice])]!r} and {answers[twice]!r}"
                shared = shared or f"{pair} begin with the same token, {tokenizer.decode([ours[twice]])!r}"
            count += 1
    if merged or shared:
        return Check(
            name="labels", finding="warning", text=merged or f"{shared}: the label_token readout shares it out"
        )
    if not count:
        return Check(name="labels", finding="ok", text="no label tokens are read")
    return Check(name="labels", finding="ok", text=f"distinct first tokens in {count} rows")


def check_context(lengths: Mapping[str, int], limit: int) -> Check:
    """Compare the longest prompts, in tokens by row, with the model's context."""
    row = max(lengths, key=lambda name: lengths[name])
    longest = f"the longest prompt found has {lengths[row]} tokens (row {row!r})"
    context = f"{limit}" if limit < 2**31 else "not stated"
    if lengths[row] <= limit:
        return Check(name="context", finding="ok", text=f"{longest}; the model's context is {context}")
    over = sum(n > limit for n in lengths.values())
    text = f"{longest}, the model's context is {context}: {over} rows at least are too long, and none is ever truncated"
    return Check(name="context", finding="fault", text=text)


def check_padding(plain: Plain) -> Check:
    """Say on which side the tokenizer pads, which our batches do not follow."""
    side = plain.encoder.tokenizer.padding_side
    return Check(name="padding", finding="ok", text=f"the tokenizer pads on the {side}, our batches on the right")
