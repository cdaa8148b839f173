"""benchmarks/ runs at its smallest setting and says what the docs quote."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from tiny import save_model

ROOT = Path(__file__).parent.parent


def run(output: Path, *arguments: str | Path, script: str = "probes.py", smallest: str = "--smoke") -> dict[str, Any]:
    command = [sys.executable, ROOT / "benchmarks" / script, smallest, "--output", output, *arguments]
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
    assert set(result["machine"]) == {"cpu", "instructions", "cores", "ram_gib", "threads"}
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
        assert 1 <= solvers[rival]["blas_threads"] <= result["machine"]["cores"]
        assert solvers[rival]["scaled_by"] == comparison["depths"] / len(solvers[rival]["timed_depths"])
        assert solvers["probekd"]["worst_gradient_ratio"] < 1e-4
        assert comparison["problems"] == comparison["depths"] * 5 * 6
    assert result["fit_probes"]["seconds"]["median"] > 0


@pytest.mark.parametrize("best", [1, 2])
def test_a_rival_has_the_threads_that_it_is_faster_with(best: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    from threadpoolctl import threadpool_info

    from probes import best_threads

    def work() -> None:
        threads = {pool["num_threads"] for pool in threadpool_info() if pool["user_api"] == "blas"}
        time.sleep(0.0 if threads == {best} else 0.2)

    assert best_threads(work, 2) == best


@pytest.mark.slow
def test_the_memory_of_a_fit_is_measured_in_a_process_of_its_own(tmp_path: Path) -> None:
    found = run(tmp_path / "memory.json", "--memory")
    assert found["rows"] == 2000
    assert 0 < found["before_gib"] <= found["peak_gib"] < found["limit_gib"] == 4
    assert found["under_limit"]
    assert found["accuracy"] > 0.3
    assert found["config"]["folds"] == 3


@pytest.fixture(scope="module")
def passes(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    model = save_model("llama", tmp_path_factory.mktemp("llama"))
    output = tmp_path_factory.mktemp("quick") / "teacher_pass.json"
    return run(output, "--model", model, "--repeats", "1", script="teacher_pass.py", smallest="--quick")


@pytest.mark.slow
def test_the_teacher_pass_reads_what_the_loop_reads(passes: dict[str, Any]) -> None:
    assert {"date", "machine", "versions", "how", "targets", "workloads", "cuts"} <= set(passes)
    assert [w["layout"] for w in passes["workloads"]] == ["branched", "listed"]
    for workload in passes["workloads"]:
        assert set(workload["readers"]) == {"loop", "probekd"}
        assert workload["computed_tokens"] <= workload["tokens"]
        ours = workload["readers"]["probekd"]
        assert ours["agrees"] and ours["compared_depths"] == [0, 2]
        for reader in workload["readers"].values():
            assert 0 < reader["seconds"]["min"] <= reader["seconds"]["median"] <= reader["seconds"]["max"]
            assert len(reader["seconds"]["runs"]) == 1
            assert 0 < reader["peak_gib"] < 4
        assert ours["efficiency"]["median"] > 0
        assert workload["best_rival"] == "loop"


@pytest.mark.slow
def test_the_teacher_pass_is_compared_with_itself_cut_and_streamed(passes: dict[str, Any]) -> None:
    cuts = passes["cuts"]
    assert set(cuts["readers"]) == {"probekd", *(f"probekd {kind}" for kind in ("streamed", "half", "last", "outputs"))}
    assert not [name for name, reader in cuts["readers"].items() if "not_run" in reader]
    for name in ("half_depth", "streamed"):
        assert cuts[name]["times"]["median"] > 0
    half, last = (cuts["readers"][f"probekd {kind}"]["needed_gflop"] for kind in ("half", "last"))
    assert half < last


def test_needed_arithmetic_counts_shared_tokens_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    from pass_workloads import needs_of
    from probekd.prompts import Prompt, TokenSequence

    def branched(number: int, *options: tuple[int, ...]) -> Prompt:
        trunk = (1, 2, number)
        sequences = tuple(
            TokenSequence(tokens=trunk + o, answer=2, options=((3, 3 + len(o)),), scored=(3, 3 + len(o)))
            for o in options
        )
        return Prompt(id=str(number), layout="branched", sequences=sequences, option_bytes=(1,) * len(options))

    needs = needs_of([branched(7, (4, 5), (6,)), branched(8, (4,), (5,))])
    # Trunk of three and what follows it; a token looks at itself and all that its own sequence has before it.
    assert (needs.asked, needs.computed) == (5 + 4 + 4 + 4, (3 + 2 + 1) + (3 + 1 + 1))
    assert needs.pairs == (1 + 2 + 3 + 4 + 5 + 4) + (1 + 2 + 3 + 4 + 4)
    assert needs.flops(linear=10, inner=2, blocks=3) == 3 * (2 * 10 * needs.computed + 4 * 2 * needs.pairs)


def test_no_path_or_address_of_this_machine_is_kept_of_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    from teacher_pass import scrubbed

    found = scrubbed(
        "first\nERROR: https://host.example/simple/x\nhost='host.example' at /home/me/x.py, in 1/2\nValueError: no"
    )
    assert found == "ERROR: <address>\n<address> at <path>, in 1/2\nValueError: no"


@pytest.mark.slow
def test_a_students_step_and_the_whole_are_timed_beside_their_rivals(tmp_path: Path) -> None:
    models = ("--student", save_model("bert", tmp_path / "bert"), "--teacher", save_model("llama", tmp_path / "llama"))
    found = run(tmp_path / "student.json", *models, script="student.py")
    assert {"date", "machine", "versions", "seed", "how", "steps", "online"} <= set(found)
    assert [(s["task"], s["options"]) for s in found["steps"]] == [("wordnet_kinds", 11), ("wordnet_which", 4)]
    for step in found["steps"]:
        assert len(step["ratio"]["runs"]) == 2
        assert step["met"] == (step["ratio"]["median"] <= step["target"] == 1.05)
        for seconds in step["seconds_a_step"].values():
            assert 0 < seconds["min"] <= seconds["median"] <= seconds["max"]
    online = found["online"]
    stages = online["probekd"]["stages"]
    assert list(stages) == ["labelled rows read", "probe fitted", "pool read", "student trained"]
    total = sum(stage["median"] for stage in stages.values())
    assert online["probekd"]["seconds"]["median"] == pytest.approx(total, abs=1e-3)
    assert {"seconds", "not_run"} & set(online["trl_gkd"])
    if "seconds" in online["trl_gkd"]:
        assert online["times_faster"]["median"] == pytest.approx(
            online["trl_gkd"]["seconds"]["median"] / total, rel=1e-3
        )
