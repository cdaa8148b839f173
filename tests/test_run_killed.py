"""A run that is killed again and again ends with the same results as one that is left alone."""

from __future__ import annotations

import contextlib
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from workspace import Workspace, workspace

KILLS = int(os.environ.get("PROBEKD_TEST_RUN_KILLS", "5"))
pytestmark = pytest.mark.slow


def start(made: Workspace) -> subprocess.Popen[bytes]:
    env = {**os.environ, "PROBEKD_CACHE": str(made.root / "cache"), "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
    with (made.root / "log").open("ab") as log:
        return subprocess.Popen(
            [sys.executable, "-m", "probekd.cli", "run", str(made.path)], env=env, stdout=log, stderr=log
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
    began = time.monotonic()
    assert start(calm).wait(timeout=300) == 0, (calm.root / "log").read_text()
    duration = time.monotonic() - began

    # One moment in each equal part of the time that a whole run takes. A start that goes on from finished stages may end
    # before its moment; then its results are checked, and the next one begins from nothing.
    draw = random.Random(0)
    moments = [duration * (i + draw.random()) / KILLS for i in range(KILLS)]
    draw.shuffle(moments)
    for moment in moments:
        while True:
            process = start(killed)
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(timeout=moment)
            process.kill()
            if process.wait() == -signal.SIGKILL:
                break
            assert process.returncode == 0, (killed.root / "log").read_text()
            assert results(killed.run) == results(calm.run)
            shutil.rmtree(killed.run)
            shutil.rmtree(killed.root / "cache")
            # The calm run may have had a slower machine: a moment that is never reached would wait for ever.
            moment *= 0.7
    assert start(killed).wait(timeout=300) == 0, (killed.root / "log").read_text()
    assert results(killed.run) == results(calm.run)
    assert not [f for f in killed.run.rglob("*.tmp")]
