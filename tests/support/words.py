"""Students that answer in words, and what plain Transformers says to the same rows one at a time."""

from __future__ import annotations

from pathlib import Path

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from probekd.config import KindName, StudentConfig
from probekd.prompts import PromptEncoder
from probekd.student.kinds import StudentKind, kind_named
from probekd.tasks.base import Example, Task

IN_WORDS: tuple[KindName, ...] = ("label_token", "option_likelihood")


def load(name: KindName, directory: Path, task: Task, **options: object) -> StudentKind:
    student = kind_named(name).load(directory, task, StudentConfig(model=str(directory), kind=name, **options))
    student.network.eval()
    return student


def answer(student: StudentKind, rows: list[Example]) -> torch.Tensor:
    return student.logits(student.network, student.collate(student.encode(rows)))


def log_probabilities(directory: Path, tokens: tuple[int, ...]) -> torch.Tensor:
    """Of every word after every token, by plain Transformers: (tokens, vocabulary)."""
    with torch.no_grad():
        model = AutoModelForCausalLM.from_pretrained(directory).eval()
        return model(torch.tensor([tokens])).logits[0].log_softmax(-1)


def by_hand(name: KindName, directory: Path, task: Task, row: Example, likelihood: str = "sum") -> list[float]:
    encoder = PromptEncoder(AutoTokenizer.from_pretrained(directory), task)
    if name == "label_token":
        (sequence,) = encoder.encode(row, "listed").sequences
        return log_probabilities(directory, sequence.tokens)[-1, encoder.label_tokens(row)].tolist()
    prompt = encoder.encode(row, "branched")
    scores = []
    for sequence, size in zip(prompt.sequences, prompt.option_bytes, strict=True):
        words = log_probabilities(directory, sequence.tokens)
        start, stop = sequence.scored
        total = sum(float(words[t - 1, sequence.tokens[t]]) for t in range(start, stop))
        scores.append(total / {"sum": 1, "per token": stop - start, "per byte": size}[likelihood])
    return scores
