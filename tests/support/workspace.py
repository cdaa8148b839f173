"""Tiny tasks as files, and run configs over them with tiny random models: enough to go through every stage in seconds."""

from __future__ import annotations

import csv
import json
import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from probekd.config import RunConfig, load_config

NOUNS = {
    "animal": ("cow", "horse", "goat", "hen"),
    "food": ("soup", "rice", "bread", "cake"),
    "tool": ("hammer", "saw", "drill", "file"),
}
LABELS = tuple(NOUNS)
SIZES = {"train": 60, "unlabelled": 30, "test": 40}
Row = dict[str, Any]


@dataclass(frozen=True)
class Workspace:
    """A directory with one task and one run config, both plain data that a test may bend before ``write``."""

    root: Path
    task: dict[str, Any]
    rows: dict[str, list[Row]]
    config: dict[str, Any]
    raw: dict[str, str] = field(default_factory=dict)
    """Text of data files that are written as they are, by split."""

    @property
    def path(self) -> Path:
        """The config file."""
        return self.root / "cfg.yaml"

    @property
    def run(self) -> Path:
        """The run directory."""
        return self.root / "runs" / "cfg"

    def write(self) -> Path:
        """Write the data, the task file and the config; returns the config's path."""
        self.root.mkdir(parents=True, exist_ok=True)
        for split, name in self.task["data"].items():
            if split in self.raw:
                (self.root / name).write_text(self.raw[split], encoding="utf-8")
            elif split in self.rows:
                write_rows(self.root / name, self.rows[split])
        (self.root / "task.yaml").write_text(yaml.safe_dump(self.task), encoding="utf-8")
        self.path.write_text(yaml.safe_dump(self.config), encoding="utf-8")
        return self.path

    def load(self, *overrides: str) -> RunConfig:
        """Write everything and load the config."""
        return load_config(self.write(), overrides)


def write_rows(path: Path, rows: Sequence[Row]) -> None:
    """Rows as JSONL or CSV."""
    with path.open("w", encoding="utf-8", newline="") as file:
        if path.suffix == ".jsonl":
            file.writelines(json.dumps(row) + "\n" for row in rows)
        else:
            writer = csv.DictWriter(file, list(rows[0]) if rows else ["id", "question", "answer"])
            writer.writeheader()
            writer.writerows(rows)


def classification_rows(split: str, number: int, seed: int) -> list[Row]:
    """Texts that name an animal, food or tool; the number in each keeps them different."""
    draw = random.Random(seed)
    rows = []
    for i in range(number):
        label = LABELS[i % len(LABELS)]
        text = f"the {draw.choice(('old', 'red', 'big'))} {draw.choice(NOUNS[label])} {split[:2]}{i}"
        rows.append({"id": f"{split}-{i}", "question": text, "answer": label})
    return rows


def choice_rows(split: str, number: int, seed: int) -> list[Row]:
    """Which of 3 to 5 words is of a kind? The answer is an index."""
    draw = random.Random(seed)
    rows = []
    for i in range(number):
        kind = draw.choice(LABELS)
        others = draw.sample([w for k in LABELS if k != kind for w in NOUNS[k]], 2 + i % 3)
        options = [draw.choice(NOUNS[kind]), *others]
        right = options[0]
        draw.shuffle(options)
        question = f"Which is a {kind}? {split[:2]}{i}"
        rows.append({"id": f"{split}-{i}", "question": question, "options": options, "answer": options.index(right)})
    return rows


def workspace(
    root: Path, kind: str, *, teacher: Path, student: Path, sizes: Mapping[str, int] = SIZES, **changes: Any
) -> Workspace:
    """A workspace of a kind of task; ``changes`` replace top-level keys of the config."""
    make, suffix = (classification_rows, "csv") if kind == "classification" else (choice_rows, "jsonl")
    task = {"name": "tiny", "kind": kind, "data": {split: f"{split}.{suffix}" for split in sizes}}
    rows = {split: make(split, n, seed) for seed, (split, n) in enumerate(sizes.items())}
    config = {
        "runs_dir": str(root / "runs"),
        "task": {"name": str(root / "task.yaml")},
        "teacher": {"model": str(teacher), "batch_tokens": 2048, "device": "cpu"},
        "probe": {"folds": 3, "l2": [0.1, 1.0], "bootstrap": 100},
        "student": {"model": str(student), "epochs": 1, "label_epochs": 1, "max_length": 32},
        "evaluate": {"bootstrap": 100},
    }
    return Workspace(root, task, rows, {**config, **changes})
