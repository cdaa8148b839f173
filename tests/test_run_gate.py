"""What a run tells the gate of its rows."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from workspace import workspace

from probekd.evaluation import gate
from probekd.run import run_stages
from probekd.tasks import load_task_from_config
from probekd.tasks.variants import variant_keys


def test_the_gate_is_told_which_rows_are_variants(
    tmp_path: Path, model_dir: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    sizes = {"train": 18, "unlabelled": 6, "test": 9}
    made = workspace(tmp_path, "classification", teacher=model_dir("llama"), student=model_dir("bert"), sizes=sizes)
    made.write()
    judge, told = gate.judge, []

    def listening(*arguments: Any, **options: Any) -> Any:
        told.append(options["groups"])
        return judge(*arguments, **options)

    monkeypatch.setattr(gate, "judge", listening)
    config = made.load()
    for stage in ("extract", "probe"):
        run_stages(config, only=stage)
    rows = load_task_from_config(config.task, prompt=config.prompt, seed=config.seed).rows("train")
    keys = dict(zip((e.id for e in rows), variant_keys(rows), strict=True))
    probe = json.loads((made.run / "probes" / "probe.json").read_text())
    assert told == [[keys[i] for i in probe["ids"]]] and probe["scored"] == probe["labelled"]
