"""benchmarks/ runs at its smallest setting and says what the docs quote."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parent.parent


def run(output: Path, *arguments: str) -> dict[str, Any]:
    command = [sys.executable, ROOT / "benchmarks/probes.py", "--smoke", "--output", output, *arguments]
    environment = {**os.environ, "PYTHONPATH": str(ROOT / "src"), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert str(ROOT) not in output.read_text()
    return dict(json.loads(output.read_text()))


@pytest.fixture(scope="module")
def result(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    return run(tmp_path_factory.mktemp("smoke") / "probes.json")


def test_the_result_says_where_and_how_it_was_measured(result: dict[str, Any]) -> None:
    assert {"date", "machine", "versions", "seed", "job", "how", "comparisons", "fit_probes"} <= set(result)
    assert set(result["machine"]) == {"cpu", "cores", "ram_gib", "threads"}
    assert result["machine"]["threads"]["torch"] == 1
    assert {"probekd", "scikit-learn", "scipy", "torch", "lmprobe"} <= set(result["versions"])


def test_every_solver_has_its_seconds_and_answers_as_good_as_the_reference(result: dict[str, Any]) -> None:
    assert [c["kind"] for c in result["comparisons"]] == ["classes", "options"]
    for comparison in result["comparisons"]:
        rival = "sklearn" if comparison["kind"] == "classes" else "scipy"
        solvers = comparison["solvers"]
        assert set(solvers) == {rival, "lmprobe", "probekd"}
        assert {"seconds", "not_run"} & set(solvers["lmprobe"])
        for name in (rival, "probekd"):
            seconds = solvers[name]["seconds"]
            assert 0 < seconds["min"] <= seconds["median"] <= seconds["max"]
            assert abs(solvers[name]["worst_excess_loss"]) < 1e-5
        assert solvers[rival]["scaled_by"] == comparison["depths"] / len(solvers[rival]["timed_depths"])
        assert solvers["probekd"]["worst_gradient_ratio"] < 1e-4
        assert comparison["problems"] == comparison["depths"] * 5 * 6
    assert result["fit_probes"]["seconds"]["median"] > 0


@pytest.mark.slow
def test_the_memory_of_a_fit_is_measured_in_a_process_of_its_own(tmp_path: Path) -> None:
    found = run(tmp_path / "memory.json", "--memory")
    assert found["rows"] == 2000
    assert 0 < found["before_gib"] <= found["peak_gib"] < found["limit_gib"] == 4
    assert found["under_limit"]
    assert found["accuracy"] > 0.3
    assert found["config"]["folds"] == 3
