"""Time the probe solver beside what a user would otherwise write, and check that the answers are the same.

    python benchmarks/probes.py [--repeats 3] [--sizes 500x576x31 2000x2048x25] [--smoke]
    python benchmarks/probes.py --memory

The job: probes of every depth, for 5 folds and 6 strengths, on generated states of 4 classes; and the scorer shared by
4 options. Rivals are slow, so they are timed on some of the depths and scaled by the count; ours is timed on all. Every
repeat runs all of them in turn. The first command writes benchmarks/results/probes.json, ``--memory``
benchmarks/results/probes_memory.json.
"""

from __future__ import annotations

import argparse
import platform
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import asdict
from datetime import date
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console
from rich.table import Table
from threadpoolctl import threadpool_limits

import memory
from generated import CLASSES, FOLDS, SEED, Job, generate, measured_spectrum, task_of, write_store
from probekd.config import ProbeConfig
from probekd.files import write_json
from probekd.probes.fit import fit_probes
from solvers import (
    LMPROBE_CAN,
    LMPROBE_CANNOT,
    MAX_ITERATIONS,
    REFERENCE_TOLERANCE,
    STRENGTHS,
    TOLERANCE,
    At,
    Judge,
    lmprobe_at,
    lmprobe_loop,
    lmprobe_version,
    loop,
    ours,
    ours_at,
)
from surroundings import machine

RESULTS = Path(__file__).resolve().parent / "results"
SIZES = ((500, 576, 31), (2000, 576, 31), (2000, 2048, 25))
OPTION_SIZES = ((500, 576, 31), (2000, 576, 31))
NESTED_SIZE = (2000, 576, 31)
SMOKE = (80, 24, 3)
TIMED_DEPTHS = 2
# Loosest first: a rival gets the first one that makes its losses as low as ours, or within this of the reference.
TOLERANCES = (1e-4, 3e-5, 1e-5, 3e-6, 1e-6, 3e-7, 1e-7, 3e-8, 1e-8)
CLOSE_ENOUGH = 1e-6

Size = tuple[int, int, int]


def say(text: str) -> None:
    """Progress, on stderr."""
    print(text, file=sys.stderr, flush=True)


def versions() -> dict[str, str | None]:
    """Of Python, of what is timed and of what it stands on."""
    names = ("probekd", "numpy", "scikit-learn", "scipy", "torch")
    return {"python": platform.python_version(), **{n: version(n) for n in names}, "lmprobe": lmprobe_version()}


def spread(seconds: list[float], scale: float = 1.0) -> dict[str, Any]:
    """Median and range of some repeats, each times ``scale``."""
    runs = [round(s * scale, 4) for s in seconds]
    return {"median": statistics.median(runs), "min": min(runs), "max": max(runs), "runs": runs}


def timed(work: Callable[[], object]) -> float:
    """Seconds that a call takes."""
    began = time.perf_counter()
    work()
    return time.perf_counter() - began


def on_threads(work: Callable[[], object], threads: int) -> Callable[[], object]:
    """The same call with this many BLAS threads."""

    def limited() -> object:
        with threadpool_limits(threads, user_api="blas"):
            return work()

    return limited


def best_threads(work: Callable[[], object], most: int) -> int:
    """1 or ``most`` BLAS threads, whichever a call is faster with, timed once each.

    On some machines a second thread makes products as small as a rival's several times slower.
    """
    return min({1, most}, key=lambda threads: timed(on_threads(work, threads)))


def sample_of(depths: tuple[int, ...]) -> tuple[At, ...]:
    """Every strength at each of the depths, the folds in turn."""
    return tuple(
        At(depth, (number + s) % FOLDS, s) for number, depth in enumerate(depths) for s in range(len(STRENGTHS))
    )


def choose_tolerance(judge: Judge, enough: float) -> tuple[float, list[dict[str, float]]]:
    """The loosest tolerance whose losses are close enough, else the one with the lowest; and all that were tried."""
    tried = []
    for tol in TOLERANCES:
        found = judge.judge(lambda at, tol=tol: judge.solve(at, np.float32, tol))  # type: ignore[misc]
        tried.append({"tol": tol, **asdict(found)})
        if found.excess <= enough:
            return tol, tried
    return min(tried, key=lambda t: t["excess"])["tol"], tried


def compare(job: Job, size: Size, repeats: int, timed_depths: int, enough: float) -> dict[str, Any]:
    """Time one job with everything that can do it, and judge the answers."""
    every = tuple(range(len(job.states)))
    some = tuple(int(i) for i in np.linspace(0, len(every) - 1, timed_depths + 2)[1:-1].round())
    say(f"{size}, {'options' if job.options else 'classes'}: checking answers")
    judge = Judge(job, sample_of(some))
    fits = dict(zip(some, ours(job, some), strict=True))
    own = judge.judge(lambda at: ours_at(job, fits[at.depth], at))
    tol, tried = choose_tolerance(judge, max(own.excess, enough))
    rival = "scipy" if job.options else "sklearn"
    work: dict[str, Callable[[], object]] = {rival: lambda: loop(job, some, tol)}
    if not job.options and lmprobe_version() is not None:
        lmprobe = judge.judge(lambda at: lmprobe_at(job, at, tol))
        work["lmprobe"] = lambda: lmprobe_loop(job, some, tol)
    threads = {name: best_threads(call, machine()["threads"]["blas"]) for name, call in work.items()}
    work = {name: on_threads(call, threads[name]) for name, call in work.items()}
    work["probekd"] = lambda: ours(job, every)
    seconds: dict[str, list[float]] = {name: [] for name in work}
    for repeat in range(repeats):
        for name, call in work.items():
            seconds[name].append(timed(call))
            say(f"  repeat {repeat + 1}: {name} {seconds[name][-1]:.2f} s")
    scale = len(every) / len(some)
    found: dict[str, Any] = {
        name: {
            "seconds": spread(s, 1.0 if name == "probekd" else scale),
            **(
                {}
                if name == "probekd"
                else {"timed_depths": list(some), "scaled_by": scale, "blas_threads": threads[name]}
            ),
        }
        for name, s in seconds.items()
    }
    found["probekd"] |= {"tolerance": TOLERANCE, "worst_excess_loss": own.excess, "worst_gradient_ratio": own.gradient}
    reached = next(t for t in tried if t["tol"] == tol)
    found[rival] |= {"tol": tol, "worst_excess_loss": reached["excess"], "tolerances_tried": tried}
    if "lmprobe" in found:
        found["lmprobe"] |= {"tol": tol, "worst_excess_loss": lmprobe.excess}
    else:
        found["lmprobe"] = {"not_run": LMPROBE_CANNOT if job.options else "not installed"}
    for name in (rival, "lmprobe"):
        if "seconds" in found[name]:
            found[name]["times_ours"] = found[name]["seconds"]["median"] / found["probekd"]["seconds"]["median"]
    n, d, depths = size
    return {
        "kind": "options" if job.options else "classes",
        "n": n,
        "d": d,
        "depths": depths,
        "problems": depths * FOLDS * len(STRENGTHS),
        "sampled_problems": len(judge.sample),
        "standardised_eigenvalues": measured_spectrum(job.states[some[0]]),
        "solvers": found,
    }


def nested(size: Size, repeats: int) -> dict[str, Any]:
    """Time a whole ``fit_probes`` on a store: nested choice over depths, strengths and windows, stack, calibration."""
    n, d, depths = size
    job = generate(n, d, depths, options=False)
    task = task_of(job.answers)
    config = ProbeConfig(l2=STRENGTHS)
    seconds = []
    with tempfile.TemporaryDirectory() as folder:
        store = Path(folder) / "store"
        states = write_store(
            store, task, depths=depths, d=d, dtype="float32", block=lambda depth, rows: job.states[depth][rows]
        )
        for repeat in range(repeats):
            began = time.perf_counter()
            probe = fit_probes(states, task, config=config)
            seconds.append(time.perf_counter() - began)
            say(f"fit_probes {size}, repeat {repeat + 1}: {seconds[-1]:.2f} s")
    return {
        "n": n,
        "d": d,
        "depths": depths,
        "config": config.model_dump(mode="json", include={"families", "l2", "windows", "stack", "folds", "tolerance"}),
        "seconds": spread(seconds),
        "chosen": {"depth": probe.reader.depth, "l2": probe.reader.l2, "window": probe.reader.window},
        "accuracy": round(probe.scores["accuracy"], 4),
    }


def measure(
    sizes: list[Size], options: list[Size], whole: Size, repeats: int, timed_depths: int, enough: float
) -> dict[str, Any]:
    """The result file."""
    began = time.perf_counter()
    return {
        "date": date.today().isoformat(),
        "machine": machine(),
        "versions": versions(),
        "seed": SEED,
        "job": {"classes": CLASSES, "folds": FOLDS, "l2": STRENGTHS, "dtype": "float32"},
        "how": {
            "repeats": repeats,
            "rivals": f"timed on {timed_depths} depths, all folds and strengths, and scaled by the number of depths; "
            f"at most {MAX_ITERATIONS} iterations; tol is the loosest whose worst loss on the sample is no further "
            f"above the reference than ours, or than {enough}",
            "reference": f"scikit-learn's lbfgs (options: SciPy's) in float64 at tol {REFERENCE_TOLERANCE}",
            "sample": "every strength at each timed depth, the folds in turn; losses and gradients in float64",
            "lmprobe_can": LMPROBE_CAN,
            "lmprobe_cannot": LMPROBE_CANNOT,
        },
        "comparisons": [
            compare(generate(*size, options=kind), size, repeats, timed_depths, enough)
            for kind, which in ((False, sizes), (True, options))
            for size in which
        ],
        "fit_probes": nested(whole, repeats),
        "total_seconds": round(time.perf_counter() - began, 1),
    }


def show(result: dict[str, Any]) -> None:
    """Print the table."""
    console = Console(width=None if sys.stdout.isatty() else 120)
    timed_on = result["how"]["rivals"].split(",")[0]
    table = Table(title=f"{FOLDS} folds, {len(STRENGTHS)} strengths; all but probekd {timed_on} and scaled")
    for column in ("n x d, depths", "kind", "solver", "seconds (range)", "times ours", "excess loss", "gradient"):
        table.add_column(column, justify="left" if column in ("kind", "solver") else "right", no_wrap=True)
    for c in result["comparisons"]:
        for name, found in c["solvers"].items():
            size = f"{c['n']} x {c['d']}, {c['depths']}"
            if "seconds" not in found:
                table.add_row(size, c["kind"], name, "cannot" if c["kind"] == "options" else found["not_run"])
                continue
            s = found["seconds"]
            ratio, excess, gradient = (
                found.get(key) for key in ("times_ours", "worst_excess_loss", "worst_gradient_ratio")
            )
            table.add_row(
                size,
                c["kind"],
                name,
                f"{s['median']:.2f} ({s['min']:.2f} to {s['max']:.2f})",
                "" if ratio is None else f"{ratio:.1f}",
                "" if excess is None else f"{excess:.1e}",
                "" if gradient is None else f"{gradient:.1e}",
            )
        table.add_section()
    console.print(table)
    whole = result["fit_probes"]
    s = whole["seconds"]
    console.print(
        f"fit_probes, {whole['n']} x {whole['d']}, {whole['depths']} depths, nested: "
        f"{s['median']:.1f} s ({s['min']:.1f} to {s['max']:.1f})"
    )


def size_of(text: str) -> Size:
    """Parse ``2000x576x31``: rows, width, depths."""
    try:
        n, d, depths = (int(part) for part in text.split("x"))
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} is not rows x width x depths, such as 500x576x31") from None
    return n, d, depths


def main() -> int:
    """Measure, print and write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--sizes", type=size_of, nargs="*", help="rows x width x depths of the 4-class job")
    parser.add_argument("--option-sizes", type=size_of, nargs="*", help="the same of the option scorer")
    parser.add_argument("--timed-depths", type=int, default=TIMED_DEPTHS, help="depths that the rivals are timed on")
    parser.add_argument(
        "--close-enough",
        type=float,
        default=CLOSE_ENOUGH,
        help="relative loss above the reference that a rival may keep",
    )
    parser.add_argument("--smoke", action="store_true", help="a job of seconds, to see that all works")
    parser.add_argument("--memory", action="store_true", help="instead, the peak memory of a fit on a large store")
    parser.add_argument("--rows", type=int, help=f"with --memory: rows of the store; default {memory.ROWS}")
    parser.add_argument("--output", type=Path, help="result file")
    args = parser.parse_args()
    if args.memory:
        default = (2000, 64) if args.smoke else (memory.ROWS, memory.WIDTH)
        found = memory.demonstrate(args.rows or default[0], default[1])
        result = {"date": date.today().isoformat(), "machine": machine(), "versions": versions(), "seed": SEED, **found}
        keys = ("rows", "d", "depths", "seconds", "peak_gib", "under_limit")
        Console().print(", ".join(f"{key} {found[key]}" for key in keys))
    else:
        sizes = [SMOKE] if args.smoke else list(SIZES)
        options = [SMOKE] if args.smoke else list(OPTION_SIZES)
        result = measure(
            sizes if args.sizes is None else args.sizes,
            options if args.option_sizes is None else args.option_sizes,
            SMOKE if args.smoke else NESTED_SIZE,
            1 if args.smoke else args.repeats,
            1 if args.smoke else args.timed_depths,
            args.close_enough,
        )
        show(result)
    path = args.output or RESULTS / ("probes_memory.json" if args.memory else "probes.json")
    write_json(path, result)
    return int(args.memory and not found["under_limit"])


if __name__ == "__main__":
    sys.exit(main())
