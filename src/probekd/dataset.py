"""A run's targets as a dataset that ``datasets.load_dataset`` reads, for training without probekd."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import yaml

from probekd.config import Method
from probekd.errors import StoreError
from probekd.files import replacing
from probekd.methods import RECIPES
from probekd.student.card import escaped
from probekd.student.licence import Origin
from probekd.targets import SOURCES, SoftTargets
from probekd.tasks.base import Example, Task

SCHEMA = pa.schema(
    {
        "id": pa.string(),
        "question": pa.string(),
        "options": pa.list_(pa.string()),
        "answer": pa.int64(),
        "split": pa.string(),
        "soft_labels": pa.list_(pa.float64()),
        "logits": pa.list_(pa.float64()),
        "source": pa.string(),
    }
)
_SPLITS = ("train", "validation", "test")
_CARD = """---
{front_matter}---

# Soft labels for {task}

Soft labels of {labelled} labelled and {pool} unlabelled rows of the task **{task}** ({kind}), written by probekd. They are
{says} (the method `{method}`).

```python
from datasets import load_dataset

rows = load_dataset("path/to/this/directory", split="train")
```

| column | what it is |
|---|---|
| `id` | of the row |
| `question` | the text |
| `options` | {options} |
| `answer` | index of the gold option; null = unlabelled |
| `split` | `train` (labelled), `unlabelled` (the pool), `validation` or `test` |
| `soft_labels` | probability of each option, which a student learns from; null in `validation` and `test` |
| `logits` | their logarithms, up to a constant: softmax(logits / T) is the target at temperature T |
| `source` | {sources} |

`validation` and `test` hold the task's rows of these splits, to measure a student on. The teacher's licence: {licence}.
"""


_SOURCES = {
    "oof": "of models that were fitted without this row, or it would be its answer again",
    "pooled": "the mean of the models of all folds",
    "gold": "its answer",
    "smoothed": "its answer, smoothed",
}


def soft_label_tables(task: Task, targets: SoftTargets) -> dict[str, pa.Table]:
    """Rows with their soft labels in ``train``, labelled ones first; ``validation`` and ``test`` where there are any.

    Raises:
        StoreError: targets of a row that the task does not have: its data have changed since they were made.
    """
    taught = {e.id: (split, e) for split in ("train", "unlabelled") for e in task.rows(split)}
    if strange := [i for i in targets.ids if i not in taught]:
        raise StoreError(
            f"task {task.name}: the targets have rows that the task has not, such as {strange[0]!r}; make them again with "
            "probekd label"
        )
    soft = zip(targets.ids, targets.probs, targets.logits, targets.sources, strict=True)
    train = [
        {**_row(*taught[i]), "soft_labels": probs.tolist(), "logits": logits.tolist(), "source": source}
        for i, probs, logits, source in soft
    ]
    held_out = {split: [_row(split, e) for e in task.rows(split)] for split in _SPLITS[1:]}
    rows = {"train": train, **held_out}
    return {split: pa.Table.from_pylist(found, schema=SCHEMA) for split, found in rows.items() if found}


def write_dataset(
    task: Task, targets: SoftTargets, directory: Path, teacher: Origin, method: Method = "probe-kd"
) -> Mapping[str, int]:
    """Write one Parquet file a split, and the card by which ``load_dataset(directory)`` finds them.

    Args:
        task: The rows.
        targets: Their soft labels.
        directory: A new one.
        teacher: The model that took part.
        method: What the soft labels were made by.

    Returns:
        Rows by split.

    Raises:
        StoreError: the directory holds something already, or the targets are of other rows.
    """
    check_new(directory)
    tables = soft_label_tables(task, targets)
    with replacing(directory.resolve()) as unfinished:
        (unfinished / "data").mkdir(parents=True)
        for split, table in tables.items():
            pq.write_table(table, unfinished / "data" / f"{split}.parquet")
        (unfinished / "README.md").write_text(_card(task, targets, list(tables), teacher, method), encoding="utf-8")
    return {split: table.num_rows for split, table in tables.items()}


def check_new(directory: Path) -> None:
    """Raise StoreError where a dataset would take the place of something."""
    if directory.is_file() or (directory.is_dir() and any(directory.iterdir())):
        raise StoreError(f"{directory}: is there already; give the name of a new directory")


def _row(split: str, example: Example) -> dict[str, Any]:
    return {
        "id": example.id,
        "question": example.question,
        "options": list(example.options),
        "answer": example.answer,
        "split": split,
    }


def _card(task: Task, targets: SoftTargets, splits: list[str], teacher: Origin, method: Method) -> str:
    classification = task.kind == "classification"
    matter = {
        "configs": [
            {
                "config_name": "default",
                "data_files": [{"split": split, "path": f"data/{split}.parquet"} for split in splits],
            }
        ],
        "task_categories": ["text-classification" if classification else "multiple-choice"],
        "tags": ["probekd", "knowledge-distillation", "soft-labels"],
    }
    labels = ", ".join(map(escaped, task.labels))
    return _CARD.format(
        front_matter=yaml.safe_dump(matter, sort_keys=False),
        task=escaped(task.name),
        kind="classification" if classification else "multiple choice",
        method=method,
        says=RECIPES[method].says.format(teacher=escaped(teacher.name)),
        sources="; ".join(f"`{name}`: {_SOURCES[name]}" for name in SOURCES if name in targets.sources),
        labelled=targets.splits.count("train"),
        pool=targets.splits.count("unlabelled"),
        options=f"the labels, the same in every row: {labels}" if classification else "the texts to choose from",
        licence=escaped(teacher.licence) if teacher.licence else "not known here; look at its own card",
    )
