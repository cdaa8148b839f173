"""MMLU: exam questions on 57 subjects with four options (Hendrycks et al., arXiv 2009.03300).

It has no training split of its own, so ``val`` is ours; ``dev`` gives the worked examples.
"""

from __future__ import annotations

from functools import partial

from probekd.config import PromptConfig
from probekd.tasks.benchmark import Benchmark, Builtin, read_multiple_choice
from probekd.tasks.readers import Row, Source

PROMPT = PromptConfig(
    instruction='The following are multiple choice questions (with answers) about {{ subject | replace("_", " ") }}.'
)


def from_hub(row: Row) -> Row:
    """A row of cais/mmlu (all); the answer is a ClassLabel, which the reader gives as its letter."""
    return {
        "question": row["question"],
        "choices": row["choices"],
        "answer": "ABCD".index(row["answer"]),
        "subject": row["subject"],
    }


BENCHMARK = Benchmark(
    folder="mmlu",
    files={"train": "val.jsonl", "test": "test.jsonl", "dev": "dev.jsonl"},
    hub={
        split: Source(hub="cais/mmlu", config="all", split=theirs)
        for split, theirs in {"train": "validation", "test": "test", "dev": "dev"}.items()
    },
    from_hub=from_hub,
)
MMLU = Builtin(
    name="mmlu",
    kind="multiple_choice",
    description="MMLU: exam questions on 57 subjects, 4 options; its val split is the training split here",
    read=partial(read_multiple_choice, BENCHMARK, "mmlu", prompt=PROMPT),
)
