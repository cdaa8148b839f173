"""A tiny study: two task files, a random Llama and a random BERT."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml
from workspace import choice_rows, classification_rows, write_rows

from probekd.study.config import StudyConfig, load_study

Write = Callable[..., Path]
SIZES = {"train": 44, "validation": 12, "test": 15}


@pytest.fixture
def write_study(tmp_path: Path, model_dir: Callable[[str], Path]) -> Write:
    """Write the task files and the study's config; ``changes`` replace its keys."""

    def write(**changes: Any) -> Path:
        for name, make, suffix in (("texts", classification_rows, "csv"), ("choices", choice_rows, "jsonl")):
            kind = "classification" if name == "texts" else "multiple_choice"
            task = {"name": name, "kind": kind, "data": {split: f"{name}-{split}.{suffix}" for split in SIZES}}
            (tmp_path / f"{name}.yaml").write_text(yaml.safe_dump(task), encoding="utf-8")
            for seed, (split, n) in enumerate(SIZES.items()):
                write_rows(tmp_path / f"{name}-{split}.{suffix}", make(split, n, seed))
        values = {
            "results_dir": str(tmp_path / "results"),
            "tasks": [str(tmp_path / "texts.yaml"), str(tmp_path / "choices.yaml")],
            "teachers": [{"model": str(model_dir("llama")), "batch_tokens": 2048, "device": "cpu"}],
            "students": [{"model": str(model_dir("bert")), "kind": "static", "max_length": 32}],
            "methods": ["labels", "probe-kd", "self-train", "blend-kd"],
            "budgets": [12, 24],
            "seeds": [0, 1],
            "rows": 40,
            "test": None,
            "probe": {"folds": 3, "l2": [1.0], "depths": [1, 2], "windows": [1], "stack": False, "bootstrap": 100},
            "search": {"alpha": [0.0, 0.5], "temperature": [1.0], "l2": [0.1, 1.0], "rows": 10},
            "bootstrap": 100,
        }
        path = tmp_path / "tiny.yaml"
        path.write_text(yaml.safe_dump({**values, **changes}), encoding="utf-8")
        return path

    return write


@pytest.fixture
def tiny_study(write_study: Write) -> Callable[..., StudyConfig]:
    return lambda **changes: load_study(write_study(**changes))
