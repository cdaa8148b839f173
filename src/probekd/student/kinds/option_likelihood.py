"""``option_likelihood``: a decoder that reads the ``branched`` question, and says each option's text more or less readily."""

from __future__ import annotations

from collections.abc import Sequence

from probekd.prompts import Prompt
from probekd.student.inputs import Encoded, Said
from probekd.student.kinds.decoder import Decoder, check_length, example_of
from probekd.tasks.base import Example

_USAGE = """import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

tokenizer = AutoTokenizer.from_pretrained("path/to/this/directory")
model = AutoModelForCausalLM.from_pretrained("path/to/this/directory")
prompt = {prompt!r}
options = {options!r}
start = len(tokenizer(prompt, add_special_tokens={special})["input_ids"])
scores = []
for option in options:
    ids = tokenizer(prompt + {joiner!r} + option, add_special_tokens={special}, return_tensors="pt")["input_ids"]
    with torch.inference_mode():
        words = model(ids).logits[0, start - 1 : -1].log_softmax(-1)
    said = words.gather(1, ids[0, start:, None])
    scores.append(said.sum(){divisor})
print(options[torch.stack(scores).argmax()])"""


class OptionLikelihood(Decoder):
    """See ``StudentKind``: an option's logit is its text's log-likelihood, or the mean over its tokens or bytes.

    The bytes are those of the option and of the blank before it, as in the teacher's readout of this name.
    """

    @property
    def usage(self) -> str:
        """See ``StudentKind``."""
        row = example_of(self.task)
        joiner = self.prompts.joiner
        over = {"sum": "", "per token": " / len(said)", "per byte": f" / len(({joiner!r} + option).encode())"}
        return _USAGE.format(
            prompt=self.prompts.context(row, "branched"),
            options=list(row.options),
            joiner=joiner,
            special=not self.task.prompt.chat,
            divisor=over[self.config.likelihood],
        )

    @property
    def reads_options(self) -> bool:
        """See ``StudentKind``."""
        return True

    def encode(self, examples: Sequence[Example]) -> list[Encoded]:
        """See ``StudentKind``; raises DataError where a question and its option are longer than ``max_length``."""
        return [self._encode(e) for e in examples]

    def _encode(self, example: Example) -> Encoded:
        prompt = self.prompts.encode(example, "branched")
        for sequence in prompt.sequences:
            check_length(example, sequence, self.max_length)
        return Encoded(
            sequences=tuple({"input_ids": list(s.tokens)} for s in prompt.sequences),
            options=len(prompt.sequences),
            cut=False,
            said=tuple(
                Said(option=j, sequence=j, at=t - 1, token=sequence.tokens[t], weight=weight)
                for j, (sequence, weight) in enumerate(zip(prompt.sequences, self._weights(prompt), strict=True))
                for t in range(*sequence.scored)
            ),
        )

    def _weights(self, prompt: Prompt) -> list[float]:
        """What a token's log-probability counts for in each option."""
        if self.config.likelihood == "per token":
            return [1 / (stop - start) for start, stop in (s.scored for s in prompt.sequences)]
        if self.config.likelihood == "per byte":
            return [1 / number for number in prompt.option_bytes]
        return [1.0] * len(prompt.sequences)
