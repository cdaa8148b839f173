"""``label_token``: a decoder that reads the task's ``listed`` prompt and answers with the next token."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

from probekd.errors import DataError
from probekd.prompts import PromptEncoder
from probekd.student.inputs import Encoded, Said
from probekd.student.kinds.decoder import Decoder, check_length, example_of
from probekd.tasks.base import Example

_USAGE = """import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

tokenizer = AutoTokenizer.from_pretrained("path/to/this/directory")
model = AutoModelForCausalLM.from_pretrained("path/to/this/directory")
prompt = {prompt!r}
inputs = tokenizer(prompt, add_special_tokens={special}, return_tensors="pt")
with torch.inference_mode():
    logits = model(**inputs).logits[0, -1]
answers = {answers!r}  # the first token of each
print(list(answers)[logits[list(answers.values())].argmax()])"""


class LabelToken(Decoder):
    """See ``StudentKind``: an option's logit is its label's log-probability as the first word of the answer.

    The labels are letters for multiple choice and the label names for classification, of which the first token is read.
    """

    @property
    def usage(self) -> str:
        """See ``StudentKind``."""
        row = example_of(self.task)
        prompt = self.prompts.context(row, "listed") + self.prompts.cue
        labels = dict(zip(self.prompts.texts.answers(row, "listed"), self.prompts.label_tokens(row), strict=True))
        return _USAGE.format(prompt=prompt, answers=labels, special=not self.task.prompt.chat)

    @property
    def reads_options(self) -> bool:
        """See ``StudentKind``."""
        return False

    def encode(self, examples: Sequence[Example]) -> list[Encoded]:
        """See ``StudentKind``.

        Raises:
            DataError: a prompt longer than ``max_length``, or labels that begin with the same token.
        """
        return [self._encode(e) for e in examples]

    def _encode(self, example: Example) -> Encoded:
        (sequence,) = self.prompts.encode(example, "listed").sequences
        check_length(example, sequence, self.max_length)
        labels = _distinct(self.prompts, example)
        return Encoded(
            sequences=({"input_ids": list(sequence.tokens)},),
            options=len(labels),
            cut=False,
            said=tuple(
                Said(option=j, sequence=0, at=sequence.answer, token=token, weight=1.0)
                for j, token in enumerate(labels)
            ),
        )


def _distinct(prompts: PromptEncoder, example: Example) -> list[int]:
    """First token of each label; raises DataError where two are the same."""
    tokens = prompts.label_tokens(example)
    token, count = Counter(tokens).most_common(1)[0]
    if count > 1:
        answers = prompts.texts.answers(example, "listed")
        alike = [answer for answer, t in zip(answers, tokens, strict=True) if t == token]
        raise DataError(
            f"row {example.id!r}: the labels {alike[0]!r} and {alike[1]!r} begin with the same token, so a student that "
            "answers with one token cannot tell them apart; take student.kind: option_likelihood or head"
        )
    return tokens
