"""Banking77: customers' questions to a bank, 77 intents (Casanueva et al., arXiv 2003.04807)."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

from probekd.errors import DataError
from probekd.tasks.answers import index_answer, label_answer
from probekd.tasks.base import Example, Task
from probekd.tasks.benchmark import Benchmark, Builtin
from probekd.tasks.readers import Located, Row, Source
from probekd.tasks.rows import text_of

SPLITS = ("train", "test")


def from_hub(row: Row) -> Row:
    """A row of mteb/banking77 (the original's loading script no longer runs); the answer stays a name."""
    return {"question": row["text"], "answer": row["label_text"]}


BENCHMARK = Benchmark(
    folder="banking77",
    files={split: f"{split}.jsonl" for split in SPLITS},
    hub={split: Source(hub="mteb/banking77", split=split) for split in SPLITS},
    from_hub=from_hub,
)


def read(data_dir: Path | None) -> Task:
    """The task; labels in the order of labels.json (files) or sorted (Hub).

    Raises:
        DataError: files are missing or broken, or the Hub cannot be reached.
    """
    directory = BENCHMARK.directory(data_dir)
    rows = {split: list(located) for split, located in BENCHMARK.rows(data_dir).items()}
    names = _labels_file(BENCHMARK.file(directory, "labels.json")) if directory else _names(rows["train"])
    read_answer = index_answer if directory else label_answer
    labels = tuple(name.replace("_", " ") for name in names)
    splits = {
        split: tuple(
            Example(
                id=row.get("id", f"banking77/{split}/{number}"),
                question=text_of(row, "question", where),
                options=labels,
                answer=read_answer(row.get("answer"), names, where),
            )
            for number, (where, row) in enumerate(located)
        )
        for split, located in rows.items()
    }
    notes = ("label names are written with blanks instead of underscores",)
    return Task(name="banking77", kind="classification", splits=splits, labels=labels, notes=notes)


def _names(rows: Sequence[Located]) -> list[str]:
    return sorted({text_of(row, "answer", where) for where, row in rows})


def _labels_file(path: Path) -> list[str]:
    try:
        names = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise DataError(f"{path}: not valid JSON ({error})") from None
    if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
        raise DataError(f"{path}: expected a JSON list of label names")
    return names


BANKING77 = Builtin(
    name="banking77",
    kind="classification",
    description="Banking77: customers' questions to a bank, 77 intents",
    read=read,
)
