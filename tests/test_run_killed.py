"""A run that is killed again and again ends with the same results as one that is left alone."""

from __future__ import annotations

import os
import random
import shutil
import signal
import time
from collections.abc import Callable
from multiprocessing.process import BaseProcess
from pathlib import Path

import forked
import pyarrow.parquet as pq
import pytest
from workspace import Workspace, workspace

KILLS = int(os.environ.get("PROBEKD_TEST_RUN_KILLS", "5"))
pytestmark = pytest.mark.slow


def start(made: Workspace) -> BaseProcess:
    cache = str(made.root / "cache")
    return forked.start(
        forked.probekd, "run", str(made.path), log=made.root / "log", PROBEKD_CACHE=cache, HF_HUB_OFFLINE="1"
    )


def results(run: Path) -> tuple[list[object], str, bytes]:
    columns = pq.read_table(run / "targets.parquet").select(["id", "probs"]).to_pylist()
    return columns, (run / "metrics.json").read_text(), (run / "student" / "model.safetensors").read_bytes()


def test_kill_9_at_random_moments_changes_no_result(tmp_path: Path, model_dir: Callable[[str], Path]) -> None:
    def make(name: str) -> Workspace:
        made = workspace(
            tmp_path / name, "classification", teacher=model_dir("llama"), student=model_dir("bert"), name="cfg"
        )
        made.write()
        return made

    calm, killed = make("calm"), make("killed")
    forked.ready(tmp_path / "log")
    began = time.monotonic()
    forked.finished(start(calm), calm.root / "log")
    duration = time.monotonic() - began

    # One moment in each equal part of the time that a whole run takes. A start that goes on from finished stages may end
    # before its moment; then its results are checked, and the next one begins from nothing.
    draw = random.Random(0)
    moments = [duration * (i + draw.random()) / KILLS for i in range(KILLS)]
    draw.shuffle(moments)
    for moment in moments:
        while True:
            process = start(killed)
            process.join(timeout=moment)
            process.kill()
            process.join()
            if process.exitcode == -signal.SIGKILL:
                break
            forked.finished(process, killed.root / "log")
            assert results(killed.run) == results(calm.run)
            shutil.rmtree(killed.run)
            shutil.rmtree(killed.root / "cache")
            # The calm run may have had a slower machine: a moment that is never reached would wait for ever.
            moment *= 0.7
    forked.finished(start(killed), killed.root / "log")
    assert results(killed.run) == results(calm.run)
    assert not [f for f in killed.run.rglob("*.tmp")]
