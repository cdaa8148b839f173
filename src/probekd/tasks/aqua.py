"""AQuA-RAT: algebra word problems with five options (Ling et al., arXiv 1705.04146)."""

from __future__ import annotations

import re
from functools import partial

from probekd.tasks.benchmark import Benchmark, Builtin, read_multiple_choice
from probekd.tasks.readers import Row, Source

SPLITS = ("train", "validation", "test")


def from_hub(row: Row) -> Row:
    """A row of deepmind/aqua_rat (raw): options are written ``A)21``, the answer as a letter."""
    return {
        "question": row["question"],
        "choices": [re.sub(r"^\s*[A-E]\s*\)\s*", "", option) for option in row["options"]],
        "answer": "ABCDE".index(row["correct"]),
    }


BENCHMARK = Benchmark(
    folder="aqua",
    files={split: f"{split}.jsonl" for split in SPLITS},
    hub={split: Source(hub="deepmind/aqua_rat", config="raw", split=split) for split in SPLITS},
    from_hub=from_hub,
)
AQUA_RAT = Builtin(
    name="aqua_rat",
    kind="multiple_choice",
    description="AQuA-RAT: algebra word problems, 5 options",
    read=partial(read_multiple_choice, BENCHMARK, "aqua_rat"),
)
