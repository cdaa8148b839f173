"""The contenders of ``latency.py``, in a process that has the cores it may use: ``python latency_readers.py JOB``.

The teacher is read in three ways. ``forward``: Transformers' body on the prompt, no cache, and the label tokens' rows of
the output embedding at the last token alone. ``prefix``: the same, with the keys and values of what all prompts begin with
kept from an earlier row. ``ours``: this project's pass, asked for no states.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from transformers import DynamicCache

from probekd.cascade.teacher import open_run
from probekd.prompts import Prompt, PromptEncoder
from probekd.student.backends import open_student
from probekd.student.onnx import Backend
from probekd.targets import softmax
from probekd.tasks.base import Example
from probekd.teacher.extract import Wanted, read_states
from probekd.teacher.load import Teacher, load_teacher

Answers = list[np.ndarray]
Contender = Callable[[Sequence[Example]], Answers]
# What the first calls allocate and plan, later ones find ready.
WARM_UP = 4


class LabelTokens:
    """A teacher's words: the distribution over the label tokens after a ``listed`` prompt."""

    def __init__(self, teacher: Teacher, encoder: PromptEncoder, rows: Sequence[Example]) -> None:
        assert teacher.head_weight is not None
        self.teacher, self.encoder = teacher, encoder
        tokens = [self.encoded(row)[0] for row in rows]
        # One token at least is left of each row, to be read.
        shortest = min(map(len, tokens)) - 1
        same = [all(t[i] == tokens[0][i] for t in tokens) for i in range(shortest)]
        self.shared = same.index(False) if False in same else shortest
        with torch.inference_mode():
            prefix = torch.tensor([tokens[0][: self.shared]])
            self.cache = teacher.body(prefix, use_cache=True).past_key_values

    def prompt(self, row: Example) -> Prompt:
        """The row's ``listed`` prompt."""
        return self.encoder.encode(row, "listed")

    def encoded(self, row: Example) -> tuple[list[int], list[int]]:
        """Tokens up to the answer, and the label tokens."""
        sequence = self.prompt(row).sequences[0]
        return list(sequence.tokens[: sequence.answer + 1]), self.encoder.label_tokens(row)

    def forward(self, rows: Sequence[Example]) -> Answers:
        """Each prompt from its first token."""
        return self._read(rows, 0)

    def prefix(self, rows: Sequence[Example]) -> Answers:
        """Each prompt from where it differs from the others."""
        return self._read(rows, self.shared)

    def ours(self, rows: Sequence[Example]) -> Answers:
        """By the pass that extraction uses."""
        labels = [self.encoder.label_tokens(row) for row in rows]
        wanted = Wanted(positions=(), depths=(), max_options=max(map(len, labels)), label_tokens=labels)
        logits = read_states(self.teacher, [self.prompt(row) for row in rows], wanted).label_logits
        assert logits is not None
        return [softmax(of[: len(names)]) for of, names in zip(logits, labels, strict=True)]

    @torch.inference_mode()
    def _read(self, rows: Sequence[Example], start: int) -> Answers:
        tokens, labels = zip(*map(self.encoded, rows), strict=True)
        lengths = torch.tensor([len(t) - start for t in tokens])
        ids = torch.zeros((len(rows), int(lengths.max())), dtype=torch.long)
        for i, of in enumerate(tokens):
            ids[i, : lengths[i]] = torch.tensor(of[start:])
        options: dict[str, Any] = {"use_cache": False}
        if start:
            options = {"use_cache": True, "past_key_values": self._kept(len(rows))}
        # Padding stands after what is read, which a causal model does not see: no mask is needed.
        hidden: Tensor = self.teacher.body(ids, **options).last_hidden_state
        last = hidden[torch.arange(len(rows)), lengths - 1]
        weight = self.teacher.head_weight
        assert weight is not None
        return [softmax((weight[list(names)] @ state).numpy()) for names, state in zip(labels, last, strict=True)]

    def _kept(self, rows: int) -> DynamicCache:
        """The shared tokens' keys and values for each row; a cache grows in place, so that it is a new one."""
        cache = DynamicCache()
        for i, layer in enumerate(self.cache.layers):
            cache.update(layer.keys.expand(rows, -1, -1, -1), layer.values.expand(rows, -1, -1, -1), i)
        return cache


def check(answers: dict[str, Answers]) -> None:
    """The teacher's ways are ways to one answer."""
    first, *others = answers.values()
    for name, other in zip(list(answers)[1:], others, strict=True):
        worst = max(float(np.abs(a - b).max()) for a, b in zip(first, other, strict=True))
        assert worst < 1e-3, f"{name} is off by {worst:.2g}"


def seconds_a_row(contender: Contender, rows: Sequence[Example], batch: int) -> float:
    """Wall-clock seconds, for all rows in batches."""
    began = time.perf_counter()
    for start in range(0, len(rows), batch):
        contender(rows[start : start + batch])
    return (time.perf_counter() - began) / len(rows)


def main() -> None:
    """Time all of a job, and print JSON."""
    job = json.loads(sys.argv[1])
    run = open_run(Path(job["run"]))
    rows = [e for e in run.task.rows("test")][: job["rows"]]
    teacher = load_teacher(run.config.teacher)
    encoder = PromptEncoder(teacher.tokenizer, run.task)
    words = LabelTokens(teacher, encoder, rows)
    ways: dict[str, Contender] = {"forward": words.forward, "prefix": words.prefix, "ours": words.ours}
    check({name: way(rows[:WARM_UP]) for name, way in ways.items()})
    backends: tuple[Backend, ...] = ("torch", "onnx", "onnx-int8")
    students = {backend: open_student(job["student"], backend) for backend in backends}
    contenders: dict[str, Contender] = {f"teacher, {name}": way for name, way in ways.items()}
    for backend, student in students.items():
        contenders[backend] = lambda some, student=student: student.predict_proba(some, batch_size=len(some))  # type: ignore[misc]
    found: dict[str, dict[str, list[float]]] = {}
    for batch in job["batches"]:
        times: dict[str, list[float]] = {name: [] for name in contenders}
        for contender in contenders.values():
            contender(rows[:batch])
            contender(rows[:WARM_UP])
        for _ in range(job["repeats"]):
            for name, contender in contenders.items():
                times[name].append(seconds_a_row(contender, rows, batch))
        found[str(batch)] = times
    student = students["torch"]
    encoded = student.model.encode(rows)  # type: ignore[attr-defined]
    tokens = {
        "teacher": round(float(np.mean([len(words.encoded(row)[0]) for row in rows])), 1),
        "shared by all prompts": words.shared,
        "student": round(float(np.mean([row.tokens for row in encoded])), 1),
    }
    described = {
        "task": run.task.name,
        "teacher": teacher.name.rsplit("/", 1)[-1],
        "student": student.info.base_model,
        "rows": len(rows),
        "tokens_a_row": tokens,
    }
    print(json.dumps({**described, "seconds": found}))


if __name__ == "__main__":
    main()
