"""Example -> Prompt: the token ids that a teacher reads and where in them its states are taken.

Options are found in the rendered text by markers, not by searching: every option is wrapped in two private-use
characters before the template is rendered, and the markers are cut out again, which leaves exact character spans
whatever the template does around them.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import TYPE_CHECKING, Any

import jinja2
from jinja2 import Environment, meta
from jinja2.sandbox import ImmutableSandboxedEnvironment

from probekd.config import Layout, PromptConfig
from probekd.errors import ConfigError, DataError, ModelError
from probekd.tasks.base import Example, Kind, Task
from probekd.tasks.orders import Order, option_orders

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

LETTERS = "ABCDEFGHIJ"
MOST_LABELS_IN_A_PROMPT = 20

_MC_LISTED = "{{ question }}\n{% for option in options %}{{ letters[loop.index0] }}. {{ option }}\n{% endfor %}Answer:"
_MC_BRANCHED = "Question: {{ question }}\nAnswer:"
_CLASSIFY = "Text: {{ question }}\nLabel:"
_CLASSIFY_INSTRUCTION = (
    f"{{% if labels | length <= {MOST_LABELS_IN_A_PROMPT} %}}Labels: {{{{ labels | join(', ') }}}}.{{% endif %}}"
)

# Supplementary Private Use Area-B: no tokenizer, font or data set in use assigns these.
_OPEN, _CLOSE = 0x10F000, "\U0010f0ff"
_MARK = re.compile("[\U0010f000-\U0010f0ff]")


@dataclass(frozen=True, slots=True, kw_only=True)
class TokenSequence:
    """One sequence for the teacher.

    Attributes:
        tokens: Token ids, special tokens included.
        answer: Index of the token from which the answer would be generated (encoders: the first token).
        options: ``(start, stop)`` token span of each option in this sequence, in the row's own order of options
            whatever the order shown; empty where none is read.
        scored: ``(start, stop)`` token span of the continuation whose likelihood is read; (0, 0) where none is.
        order: ``listed``: for each shown place (so for each label) the index of the row's option that stands there;
            ``branched``: empty.
    """

    tokens: tuple[int, ...]
    answer: int
    options: tuple[tuple[int, int], ...] = ()
    scored: tuple[int, int] = (0, 0)
    order: tuple[int, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Prompt:
    """A row in one layout: one sequence for each option order read (``listed``) or one for each option (``branched``)."""

    id: str
    layout: Layout
    sequences: tuple[TokenSequence, ...]
    option_bytes: tuple[int, ...]

    @property
    def num_tokens(self) -> int:
        """Tokens over all sequences."""
        return sum(len(s.tokens) for s in self.sequences)


def layouts_of(kind: Kind, prompt: PromptConfig) -> tuple[Layout, ...]:
    """The layouts that a task is read in."""
    if prompt.layouts is not None:
        return tuple(dict.fromkeys(prompt.layouts))
    return ("listed", "branched") if kind == "multiple_choice" else ("listed",)


def orders_read(kind: Kind, layout: Layout, prompt: PromptConfig) -> int:
    """In how many option orders the rows of a layout are read; a row with few options may have fewer (K! of them)."""
    return prompt.permutations if kind == "multiple_choice" and layout == "listed" else 1


@lru_cache(maxsize=64)
def _compile(source: str) -> jinja2.Template:
    environment = ImmutableSandboxedEnvironment(undefined=jinja2.StrictUndefined, autoescape=False, trim_blocks=False)
    try:
        return environment.from_string(source)
    except jinja2.TemplateSyntaxError as error:
        raise ConfigError(f"prompt template, line {error.lineno}: {error.message}") from None


def _render(source: str, values: Mapping[str, Any]) -> str:
    try:
        return _compile(source).render(**values)
    except (jinja2.TemplateError, TypeError, ValueError, ArithmeticError) as error:
        raise ConfigError(f"prompt template: {error}; it can use {', '.join(sorted(values))}") from None


def shows_subject(prompt: PromptConfig, worked_examples: Sequence[Example]) -> bool:
    """Whether what a row's prompt says depends on its subject: a template names it, or worked examples are of one."""
    sources = (prompt.instruction, prompt.template, prompt.branched_template)
    named = (meta.find_undeclared_variables(Environment().parse(source)) for source in sources if source)
    return any("subject" in names for names in named) or any(e.subject for e in worked_examples)


class PromptText:
    """Renders the rows of one task as text.

    Raises:
        ConfigError: a template that does not parse, uses an unknown name, or does not show an option.
        DataError: fewer worked examples than ``shots`` asks for.
    """

    def __init__(self, task: Task) -> None:
        self.task = task
        self.config = task.prompt
        choice = task.kind == "multiple_choice"
        self.instruction = (
            self.config.instruction
            if self.config.instruction is not None
            else ("" if choice else _CLASSIFY_INSTRUCTION)
        )
        listed, branched = self.config.template, self.config.branched_template
        if listed is None:
            listed = _MC_LISTED if choice else _CLASSIFY
        if branched is None:
            branched = _MC_BRANCHED if choice else listed
        self.templates: dict[Layout, str] = {"listed": listed, "branched": branched}
        if self.config.shots and self.config.shots_from in ("train", "unlabelled", "validation", "test"):
            raise ConfigError(
                f"prompt.shots_from: {self.config.shots_from!r} takes part in training or evaluation, so its rows cannot also be "
                "worked examples; put them in a split of their own, such as dev"
            )

    def body(self, example: Example, layout: Layout, *, marked: bool = False) -> str:
        """The question part: all options (``listed``) or what they continue (``branched``)."""
        options = [f"{chr(_OPEN + i)}{o}{_CLOSE}" if marked else o for i, o in enumerate(example.options)]
        text = _render(
            self.templates[layout], self._values(example) | {"question": example.question, "options": options}
        )
        return text.rstrip()

    def text(self, example: Example, layout: Layout, *, marked: bool = False) -> str:
        """The whole prompt: instruction, worked examples, question."""
        parts = [_render(self.instruction, self._values(example)).strip()] if self.instruction else []
        parts += [f"{self.body(shot, layout)} {self.said(shot, layout)}" for shot in self._shots(example)]
        parts.append(self.body(example, layout, marked=marked))
        return "\n\n".join(part for part in parts if part)

    def said(self, example: Example, layout: Layout) -> str:
        """The gold answer as the teacher would say it in this layout."""
        assert example.answer is not None
        return self.answers(example, layout)[example.answer]

    def answers(self, example: Example, layout: Layout) -> Sequence[str]:
        """What the teacher could say: letters (multiple choice, listed), else the options' texts."""
        letters = self.task.kind == "multiple_choice" and layout == "listed"
        return LETTERS[: len(example.options)] if letters else example.options

    def _values(self, example: Example) -> dict[str, Any]:
        letters = list(LETTERS[: len(example.options)])
        return {"labels": list(self.task.labels), "subject": example.subject, "letters": letters}

    def _shots(self, example: Example) -> list[Example]:
        if not self.config.shots:
            return []
        source = self.config.shots_from
        rows = [e for e in self.task.rows(source) if e.answer is not None and e.subject == example.subject]
        if len(rows) < self.config.shots:
            about = f" of subject {example.subject!r}" if example.subject else ""
            raise DataError(
                f"task {self.task.name}: prompt.shots = {self.config.shots}, but split {source!r} has {len(rows)} answered rows{about}"
            )
        return rows[: self.config.shots]


class PromptEncoder:
    """Encodes the rows of one task for one tokenizer.

    Args:
        tokenizer: A fast tokenizer (offsets are needed to find the options).
        task: The rows' task; its prompt config decides the text.
        encoder: The teacher is bidirectional: its ``answer`` state is the first token's.

    Raises:
        ModelError: a slow tokenizer, a missing chat template, or a doubled BOS token.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase, task: Task, *, encoder: bool = False) -> None:
        if not tokenizer.is_fast:
            raise ModelError(
                f"{type(tokenizer).__name__} gives no character offsets, which are needed to find the options; "
                "save the model with a fast tokenizer (tokenizer.json)"
            )
        if task.prompt.chat and not tokenizer.chat_template:
            raise ModelError(
                f"prompt.chat is on, but the tokenizer of {tokenizer.name_or_path} has no chat template; turn it off"
            )
        self.tokenizer = tokenizer
        self.task = task
        self.encoder = encoder
        self.texts = PromptText(task)
        self.joiner = "" if task.prompt.chat else " "
        # Where a tokenizer makes the blank a token of its own, that token belongs to the prompt: the label follows it.
        self.cue = self.joiner if self._blank_is_a_token() and not encoder else ""

    @property
    def opening(self) -> str | None:
        """What the tokenizer may put before a text: BOS, or the [CLS] of BERT's family."""
        tokens: tuple[str | None, ...] = (self.tokenizer.bos_token, self.tokenizer.cls_token)
        return next((token for token in tokens if token), None)

    def encode(self, example: Example, layout: Layout) -> Prompt:
        """Token ids and positions of one row."""
        clash = next((t for t in (example.question, *example.options) if _MARK.search(t)), None)
        if clash is not None:
            raise DataError(
                f"row {example.id!r}: the text holds a character of U+10F000..U+10F0FF, which probekd uses as a marker"
            )
        try:
            sequences = self._sequences(example, layout)
        except ModelError:
            opening = self.opening
            if opening and any(opening in t for t in (example.question, *example.options)):
                raise DataError(
                    f"row {example.id!r}: its text holds {opening!r}, which the tokenizer reads as the token that begins a "
                    "prompt; take it out of the row"
                ) from None
            raise
        option_bytes = tuple(len((self.joiner + o).encode()) for o in example.options)
        return Prompt(id=example.id, layout=layout, sequences=sequences, option_bytes=option_bytes)

    def _sequences(self, example: Example, layout: Layout) -> tuple[TokenSequence, ...]:
        if layout == "listed":
            number = orders_read(self.task.kind, layout, self.task.prompt)
            orders = option_orders(example.id, len(example.options), number)
            return tuple(self._listed(example, order) for order in orders)
        prefix = self.context(example, "branched")
        return tuple(self._branch(prefix, option) for option in example.options)

    def context(self, example: Example, layout: Layout) -> str:
        """The prompt's text as the tokenizer is given it, which ``joiner`` and an answer continue."""
        return self._wrap(self.texts.text(example, layout))

    def label_tokens(self, example: Example) -> list[int]:
        """First token of each answer that the ``listed`` prompt could be continued with."""
        return [token for token, _ in self.labels(example)]

    def labels(self, example: Example) -> list[tuple[int, str]]:
        """The first token of each answer to the ``listed`` prompt, and the text that it adds to ``context``."""
        context = _cut_marks(self._wrap(self.texts.text(example, "listed", marked=True)))[0]
        start = len(context + self.cue)
        found = []
        for answer in self.texts.answers(example, "listed"):
            text = context + self.joiner + answer
            ids, offsets = self._tokenise(text)
            first = next(i for i, (_, stop) in enumerate(offsets) if stop > start)
            found.append((ids[first], text[len(context) : offsets[first][1]]))
        return found

    def _listed(self, example: Example, order: Order) -> TokenSequence:
        choice = self.task.kind == "multiple_choice"
        shown = replace(example, options=tuple(example.options[i] for i in order))
        text, spans = _cut_marks(self._wrap(self.texts.text(shown, "listed", marked=choice)) + self.cue)
        ids, offsets = self._tokenise(text)
        if choice:
            hidden = [LETTERS[i] for i in range(len(example.options)) if i not in spans]
            if hidden:
                raise ConfigError(
                    f"prompt.template does not show option {hidden[0]} of row {example.id!r}; loop over {{{{ options }}}}"
                )
        places = [order.index(i) for i in range(len(order))]  # where each option of the row stands
        options = tuple(_token_span(offsets, *spans[place]) for place in places) if choice else ()
        return TokenSequence(tokens=tuple(ids), answer=self._answer(offsets), options=options, order=order)

    def _branch(self, prefix: str, option: str) -> TokenSequence:
        ids, offsets = self._tokenise(prefix + self.joiner + option)
        start = len(prefix) + len(self.joiner)
        span = _token_span(offsets, start, start + len(option))
        scored = _token_span(offsets, len(prefix), start + len(option))
        if not self.encoder and not scored[0]:
            raise ConfigError(
                "prompt.branched_template: nothing stands before the options of a row, and the tokenizer adds no BOS: the "
                "first token of an option would follow nothing; say something before it, such as {{ question }}"
            )
        return TokenSequence(
            tokens=tuple(ids), answer=0 if self.encoder else scored[0] - 1, options=(span,), scored=scored
        )

    def _answer(self, offsets: Sequence[tuple[int, int]]) -> int:
        return 0 if self.encoder else len(offsets) - 1

    def _wrap(self, text: str) -> str:
        if not self.task.prompt.chat:
            return text
        system = self.task.prompt.system
        messages = [*([{"role": "system", "content": system}] if system else []), {"role": "user", "content": text}]
        try:
            return str(self.tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True))
        except jinja2.TemplateError as error:
            raise ModelError(
                f"the chat template of {self.tokenizer.name_or_path} refuses the prompt: {error}; see prompt.system and prompt.chat"
            ) from None

    def _tokenise(self, text: str) -> tuple[list[int], list[tuple[int, int]]]:
        # A chat template writes its own special tokens (transformers: "tokenise without special tokens").
        special = not self.task.prompt.chat
        encoding = self.tokenizer(
            text,
            add_special_tokens=special,
            return_offsets_mapping=True,
            return_special_tokens_mask=True,
            return_attention_mask=False,
            verbose=False,
        )
        ids, offsets = list(encoding["input_ids"]), [(int(a), int(b)) for a, b in encoding["offset_mapping"]]
        if not self.encoder:
            # Some tokenizers append EOS; a causal model must be read at the last token of the text.
            added = list(encoding["special_tokens_mask"])
            while added and added.pop():
                ids.pop()
                offsets.pop()
        if len(ids) > 1 and self.opening and ids[0] == ids[1] == self.tokenizer.convert_tokens_to_ids(self.opening):
            raise ModelError(
                f"the prompt starts with two BOS tokens ({self.opening}): the template writes one and the tokenizer adds one; "
                "drop it from the template"
            )
        return ids, offsets

    def _blank_is_a_token(self) -> bool:
        if not self.joiner:
            return False
        # By ids: a tokenizer that trims offsets (Llama 3's) gives a lone blank an empty span.
        bare, blank, said = (
            list(self.tokenizer(text, add_special_tokens=False)["input_ids"])
            for text in ("Answer:", "Answer: ", "Answer: A")
        )
        return blank != bare and said[: len(blank)] == blank


def _cut_marks(text: str) -> tuple[str, dict[int, tuple[int, int]]]:
    """Text without markers and the character span of each marked option; a repeated option counts where it is last."""
    plain: list[str] = []
    spans: dict[int, tuple[int, int]] = {}
    length, start, current = 0, 0, -1
    for piece in re.split("([\U0010f000-\U0010f0ff])", text):
        if not _MARK.fullmatch(piece):
            plain.append(piece)
            length += len(piece)
        elif piece == _CLOSE:
            spans[current] = (start, length)
        else:
            current, start = ord(piece) - _OPEN, length
    return "".join(plain), spans


def _token_span(offsets: Sequence[tuple[int, int]], start: int, stop: int) -> tuple[int, int]:
    """Tokens that overlap the characters [start, stop)."""
    inside = [i for i, (a, b) in enumerate(offsets) if a < stop and b > start and b > a]
    if not inside:
        raise DataError(f"no token covers the characters {start} to {stop} of a prompt: the tokenizer drops this text")
    return inside[0], inside[-1] + 1
