"""ARC: grade-school science questions with 3 to 5 options (Clark et al., arXiv 1803.05457)."""

from __future__ import annotations

from functools import partial

from probekd.tasks.benchmark import Benchmark, Builtin, read_multiple_choice
from probekd.tasks.readers import Row, Source

SPLITS = ("train", "validation", "test")


def from_hub(row: Row) -> Row:
    """A row of allenai/ai2_arc; the answer key is a label of the row's own, mostly A to D but 1 to 4 in some rows."""
    choices = row["choices"]
    return {
        "id": row["id"],
        "question": row["question"],
        "choices": choices["text"],
        "answer": choices["label"].index(row["answerKey"]),
    }


def _arc(name: str, config: str, description: str) -> Builtin:
    benchmark = Benchmark(
        folder=name,
        files={split: f"{split}.jsonl" for split in SPLITS},
        hub={split: Source(hub="allenai/ai2_arc", config=config, split=split) for split in SPLITS},
        from_hub=from_hub,
    )
    read = partial(read_multiple_choice, benchmark, name)
    return Builtin(name=name, kind="multiple_choice", description=description, read=read)


ARC_EASY = _arc("arc_easy", "ARC-Easy", "ARC Easy: grade-school science, 3 to 5 options")
ARC_CHALLENGE = _arc("arc_challenge", "ARC-Challenge", "ARC Challenge: the questions that retrieval gets wrong")
