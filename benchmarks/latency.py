"""Time one answer: a run's student beside its teacher's cheapest output readout, by batch size and number of cores.

    python benchmarks/latency.py RUN [RUN ...] [--rows 64] [--repeats 5]   writes benchmarks/results/latency.json

Each contender answers the same test rows of a finished run, from the row's text to its distribution, tokenising included.
The student: PyTorch, ONNX, and ONNX with 8-bit weights, exported anew and held against PyTorch. The teacher: its label
tokens read off one ``listed`` prompt, in three ways (``latency_readers.py``), of which the fastest counts. All are loaded
in one process for a number of cores, and take turns.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from datetime import date
from importlib.metadata import version
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from probekd.cascade.teacher import open_run
from probekd.files import write_json
from probekd.student.onnx.export import export_onnx
from surroundings import machine

HERE = Path(__file__).resolve().parent
RESULTS = HERE / "results" / "latency.json"
# The student at batch 1 on one core, against the teacher's cheapest output readout.
TARGET = 20
BATCHES = (1, 32)
CORES = (1, 2)
STUDENTS = ("torch", "onnx", "onnx-int8")


def measure(run: Path, student: Path, cores: int, rows: int, repeats: int) -> dict[str, Any]:
    """Milliseconds a row, by contender and batch size, in a process that has this many cores."""
    threads = {name: str(cores) for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS")}
    job = {"run": str(run), "student": str(student), "rows": rows, "repeats": repeats, "batches": BATCHES}
    done = subprocess.run(
        [sys.executable, str(HERE / "latency_readers.py"), json.dumps(job)],
        env={**os.environ, **threads, "TOKENIZERS_PARALLELISM": "false"},
        stdout=subprocess.PIPE,
        text=True,
        check=True,
        preexec_fn=lambda: os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[:cores]),
    )
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found


def cells(found: dict[str, dict[str, list[float]]], cores: int) -> list[dict[str, Any]]:
    """One row of the table for each batch size and contender; how many times faster than the cheapest teacher."""
    table = []
    for batch, runs in found.items():
        teacher = min((name for name in runs if name not in STUDENTS), key=lambda name: statistics.median(runs[name]))
        for name, seconds in runs.items():
            # Turn by turn, so that a slow minute of the machine is both's.
            ratios = [slow / fast for slow, fast in zip(runs[teacher], seconds, strict=True)]
            table.append(
                {
                    "cores": cores,
                    "batch": int(batch),
                    "who": name,
                    "milliseconds_a_row": spread(seconds, 1000),
                    "against": teacher,
                    "times_faster": spread(ratios),
                }
            )
    return table


def spread(runs: Sequence[float], scale: float = 1) -> dict[str, float]:
    """Median and range of some repeats."""
    scaled = [round(scale * r, 3) for r in runs]
    return {"median": round(statistics.median(scaled), 3), "min": min(scaled), "max": max(scaled)}


def measure_run(run: Path, rows: int, repeats: int) -> dict[str, Any]:
    """Export the run's student beside a copy of it, and time it with one core and with two."""
    with tempfile.TemporaryDirectory() as scratch:
        student = Path(scratch) / "student"
        shutil.copytree(run / "student", student)
        # The file's latency is what it is whatever its 8-bit weights cost in accuracy: the parity is reported with it.
        parity = export_onnx(student, open_run(run).task.rows("train"), int8=True, accept_int8=True)
        found = [measure(run, student, cores, rows, repeats) for cores in CORES]
    table = [cell for cores, of in zip(CORES, found, strict=True) for cell in cells(of["seconds"], cores)]
    first = {cell["who"]: cell for cell in table if cell["cores"] == 1 and cell["batch"] == 1}
    best = max(STUDENTS, key=lambda name: first[name]["times_faster"]["median"])
    return {
        **{key: found[0][key] for key in ("task", "teacher", "student", "rows", "tokens_a_row")},
        "parity": {name: of.as_dict() for name, of in parity.items()},
        "cells": table,
        "times_faster_batch_1_one_core": {name: first[name]["times_faster"]["median"] for name in STUDENTS},
        "best": best,
        "met": first[best]["times_faster"]["median"] >= TARGET,
    }


def main() -> int:
    """Measure, print and write; 1 when a target is missed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs", type=Path, nargs="+", help="directories of finished runs")
    parser.add_argument("--rows", type=int, default=64, help="test rows that are answered")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--output", type=Path, default=RESULTS)
    args = parser.parse_args()
    measured = [measure_run(run, args.rows, args.repeats) for run in args.runs]
    packages = ("probekd", "torch", "transformers", "onnx", "onnxruntime")
    result = {
        "date": date.today().isoformat(),
        "machine": machine(),
        "versions": {name: version(name) for name in packages},
        "how": " ".join(__doc__.split()),
        "target": TARGET,
        "runs": measured,
    }
    write_json(args.output, result)
    for of in measured:
        table = Table("cores", "batch", "who", "ms a row", "times faster", title=of["task"])
        for cell in of["cells"]:
            ms, times = cell["milliseconds_a_row"], cell["times_faster"]
            ratio = f"{times['median']:.1f} ({times['min']:.1f} to {times['max']:.1f})"
            table.add_row(str(cell["cores"]), str(cell["batch"]), cell["who"], f"{ms['median']:.2f}", ratio)
        Console().print(table)
    return 0 if all(of["met"] for of in measured) else 1


if __name__ == "__main__":
    sys.exit(main())
