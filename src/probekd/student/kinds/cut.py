"""``cut``: a decoder's first blocks with a linear head on one state a row or an option, as a probe reads them.

``student.cutting`` makes the checkpoint that one starts from: a plain Transformers directory with ``cut.json``.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Self, get_args

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from probekd.config import Layout, Position, StudentConfig
from probekd.errors import ModelError, StoreError
from probekd.files import read_json, write_json
from probekd.prompts import Prompt, PromptEncoder, layouts_of
from probekd.student.inputs import Encoded, Span
from probekd.student.kinds.base import present_options
from probekd.student.kinds.cut_card import usage
from probekd.student.kinds.decoder import check_length, pad_right, shown
from probekd.student.load import check_blocks, load_blocks, load_config, load_tokenizer, usable_length
from probekd.student.lora import merged, with_adapter
from probekd.tasks.base import Example, Task
from probekd.teacher.architecture import find_norm
from probekd.teacher.load import quiet_transformers

READING_FILE = "cut.json"
HEAD_FILE = "head.safetensors"


@dataclass(frozen=True, kw_only=True)
class Reading:
    """What the head of a cut student reads.

    Attributes:
        layout: Prompt layout.
        position: ``answer``: one state a row, a score for each class. Else a state for each option, one scorer for all.
        normed: Whether states have gone through the model's final norm.
        classifier: Whether network and head are one of Transformers' sequence classifiers, which read the last token.
    """

    layout: Layout
    position: Position
    normed: bool
    classifier: bool

    @property
    def shared(self) -> bool:
        """Whether all options share one scorer."""
        return self.position != "answer"

    @property
    def last(self) -> bool:
        """Whether the state is that of the sequence's last token, once what comes after it is left out."""
        return self.position == "answer" or (self.position == "option_end" and self.layout == "branched")

    def save(self, directory: Path) -> None:
        """Write ``cut.json``."""
        write_json(directory / READING_FILE, asdict(self))

    @classmethod
    def load(cls, directory: Path) -> Reading:
        """Read ``cut.json``; raises StoreError where it is damaged."""
        path = directory / READING_FILE
        try:
            found = cls(**read_json(path))
        except TypeError as error:
            raise StoreError(f"{path}: damaged ({error}); make the student again") from None
        if found.layout not in get_args(Layout) or found.position not in get_args(Position):
            raise StoreError(f"{path}: damaged (no position {found.layout}/{found.position}); make the student again")
        return found


@dataclass(frozen=True, kw_only=True, eq=False)
class Cut:
    """See ``StudentKind``. A prompt longer than ``max_length`` is refused, never cut.

    Attributes:
        prompts: Shows rows as the teacher is shown them.
        reading: What is read; None = not known yet, for a teacher's own directory, whose rows can be checked for length.
        norm: Name and module of the final norm that is not applied, so that it can be saved; None = it is, or there is
            none.
    """

    network: Any
    tokenizer: Any
    max_length: int
    prompts: PromptEncoder
    reading: Reading | None
    norm: tuple[str, nn.Module] | None = None

    @classmethod
    def prepare(cls, source: str | Path, task: Task, config: StudentConfig) -> Self:
        """See ``StudentKind``; a teacher's own directory will do."""
        check_blocks(source, config)
        tokenizer = load_tokenizer(source, config)
        length = usable_length(tokenizer, load_config(source, config), config.max_length)
        reading = Reading.load(Path(source)) if (Path(source) / READING_FILE).is_file() else None
        prompts = PromptEncoder(tokenizer, shown(task))
        return cls(network=None, tokenizer=tokenizer, max_length=length, prompts=prompts, reading=reading)

    @classmethod
    def load(cls, source: str | Path, task: Task, config: StudentConfig) -> Self:
        """See ``StudentKind``; the checkpoint is one that ``cut_student`` made."""
        ready = cls.prepare(source, task, config)
        if ready.reading is None:
            raise ModelError(
                f"student {source}: it has no {READING_FILE}; a cut student starts from what student.cutting.cut_student "
                "makes of a teacher and a probe, as  probekd run  does"
            )
        network = load_blocks(source, ready.reading.classifier, config)
        if not ready.reading.classifier:
            put_head(network, load_file(Path(source) / HEAD_FILE))
        norm = None if ready.reading.normed else without_norm(network)
        if config.lora is not None:
            network = with_adapter(network, config.lora, heads={"score"}, model=source)
        return replace(ready, network=network, norm=norm)

    @property
    def task(self) -> Task:
        """See ``StudentKind``."""
        return self.prompts.task

    @property
    def pipeline_tag(self) -> str:
        """See ``StudentKind``."""
        return "text-classification"

    @property
    def usage(self) -> str:
        """See ``StudentKind``."""
        assert self.reading is not None
        norm = self.norm[0] if self.norm else None
        return usage(self.prompts, **asdict(self.reading), norm=norm)

    def encode(self, examples: Sequence[Example]) -> list[Encoded]:
        """See ``StudentKind``; tokens after the last that is read are left out, which changes nothing before them.

        Raises:
            DataError: a prompt longer than ``max_length``.
        """
        known = self.reading
        if known is not None:
            return [self._encode(e, known) for e in examples]
        layouts = layouts_of(self.task.kind, self.task.prompt)
        every = [Reading(layout=layout, position="answer", normed=True, classifier=True) for layout in layouts]
        return [[self._encode(e, reading) for reading in every][-1] for e in examples]

    def _encode(self, example: Example, reading: Reading) -> Encoded:
        prompt = self.prompts.encode(example, reading.layout)
        for sequence in prompt.sequences:
            check_length(example, sequence, self.max_length)
        spans = spans_read(prompt, reading)
        used = range(1 + max(span.sequence for span in spans))
        ends = [max(span.stop for span in spans if span.sequence == number) for number in used]
        return Encoded(
            sequences=tuple(
                {"input_ids": list(prompt.sequences[number].tokens[:end])}
                for number, end in zip(used, ends, strict=True)
            ),
            options=len(example.options),
            cut=False,
            spans=spans,
        )

    def collate(self, rows: Sequence[Encoded]) -> dict[str, Tensor]:
        """One batch of b rows.

        Returns:
            ``input_ids`` (s, tokens), padded on the right; for each of m tokens ``at``, its place in the flattened
            ``input_ids``, ``weight``, and ``slot``, where its state goes: row i with one state, or i * k + option;
            ``present`` (b, k).
        """
        assert self.reading is not None
        present = present_options(rows)
        inputs = pad_right([s["input_ids"] for row in rows for s in row.sequences])
        length = inputs.shape[1]
        at, slots, weights, first = [], [], [], 0
        for i, row in enumerate(rows):
            for option, span in enumerate(row.spans):
                tokens = range(span.start, span.stop)
                at += [(first + span.sequence) * length + t for t in tokens]
                slots += [i * present.shape[1] + option if self.reading.shared else i] * len(tokens)
                weights += [1 / len(tokens)] * len(tokens)
            first += len(row.sequences)
        return {
            "present": present,
            "input_ids": inputs,
            "at": torch.tensor(at),
            "slot": torch.tensor(slots),
            "weight": torch.tensor(weights),
        }

    def logits(self, network: Any, batch: dict[str, Tensor]) -> Tensor:
        """See ``StudentKind``: the head's scores of the states that are read."""
        assert self.reading is not None
        network = network.get_base_model() if hasattr(network, "get_base_model") else network
        hidden = network.base_model(input_ids=batch["input_ids"], use_cache=False).last_hidden_state
        scores = network.score(self._read(hidden, batch)).float()
        present = batch["present"]
        if self.reading.shared:
            scores = scores.view(present.shape)
        missing = present.shape[1] - scores.shape[1]  # options that no labelled row had
        scores = nn.functional.pad(scores, (0, missing), value=-torch.inf)
        return scores.masked_fill(~present, -torch.inf)

    def _read(self, hidden: Tensor, batch: dict[str, Tensor]) -> Tensor:
        """The states of ``hidden`` (s, tokens, d) that the head is given: (b, d), or (b * k, d), 0 where there is no option."""
        read = hidden.flatten(0, 1)[batch["at"]] * batch["weight"][:, None].to(hidden.dtype)  # (m, d)
        number = batch["present"].numel() if self.reads_options else len(batch["present"])
        return read.new_zeros(number, read.shape[1]).index_add(0, batch["slot"], read)

    @property
    def reads_options(self) -> bool:
        """See ``StudentKind``; known of what ``cut_student`` made alone."""
        assert self.reading is not None
        return self.reading.shared

    def states(self, hidden: Tensor, batch: dict[str, Tensor]) -> Tensor:
        """See ``StudentKind``: those that the head is given."""
        found = self._read(hidden, batch)
        return found[batch["present"].flatten()] if self.reads_options else found

    def save(self, directory: Path) -> None:
        """See ``StudentKind``: a sequence classifier, or the body and, beside it, the head."""
        assert self.reading is not None
        network = merged(self.network).cpu()
        state = network.state_dict()
        if not self.reading.classifier:
            head = {name.removeprefix("score."): state.pop(name) for name in list(state) if name.startswith("score.")}
        if self.norm is not None:
            name, norm = self.norm
            state |= {f"{name}.{part}": tensor.cpu() for part, tensor in norm.state_dict().items()}
        with quiet_transformers():
            network.save_pretrained(directory, state_dict=state)
            self.tokenizer.save_pretrained(directory)
        if not self.reading.classifier:
            save_file({name: tensor.contiguous() for name, tensor in head.items()}, directory / HEAD_FILE)
        self.reading.save(directory)


def spans_read(prompt: Prompt, reading: Reading) -> tuple[Span, ...]:
    """The tokens whose mean state is read: of the row, or of each of its options."""
    if reading.position == "answer":
        answer = prompt.sequences[0].answer
        return (Span(sequence=0, start=answer, stop=answer + 1),)
    spans = [Span(number, *where) for number, s in enumerate(prompt.sequences) for where in s.options]
    if reading.position == "option_end":
        spans = [span._replace(start=span.stop - 1) for span in spans]
    return tuple(spans)


def put_head(network: Any, tensors: dict[str, Tensor]) -> None:
    """Give a network the linear head ``score`` with a weight (outputs, d), and a bias (outputs,) if there is one."""
    outputs, d = tensors["weight"].shape
    network.score = nn.Linear(d, outputs, bias="bias" in tensors)
    network.score.load_state_dict(tensors)


def without_norm(network: Any) -> tuple[str, nn.Module] | None:
    """Take the final norm out of a body; its name and itself, None where there is none."""
    norm = find_norm(network)
    if norm is None:
        return None
    name = next(name for name, module in network.named_modules() if module is norm)
    network.set_submodule(name, nn.Identity())
    return name, norm
