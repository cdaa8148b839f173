"""How much memory probes take on a store that does not fit in it; run by ``probes.py --memory``.

Writing the store and fitting on it are processes of their own, so that neither's memory counts for the other.
"""

from __future__ import annotations

import argparse
import json
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

ROWS, WIDTH, DEPTHS, FOLDS, STRENGTHS, TOLERANCE = 100_000, 4096, 2, 3, (0.3, 3.0), 1e-3
DTYPE = "bfloat16"
# The spectrum's leading directions; the rest is white, at the level where they end.
DIRECTIONS = 256
LIMIT_GIB = 4.0


def answers(rows: int) -> Any:
    """What the generator's hidden numbers say of each row, and the task; the same in both processes."""
    import numpy as np

    from generated import KNOWING, SEED, answers_of, task_of

    generator = np.random.default_rng((SEED, rows))
    known = generator.standard_normal((rows, KNOWING), dtype=np.float32)
    return known, task_of(answers_of(known, generator))


def write(directory: Path, rows: int, width: int) -> None:
    """Write the store, a shard at a time."""
    import numpy as np

    from generated import KNOWING, SEED, mixing, spectrum, write_store

    known, task = answers(rows)
    directions = min(DIRECTIONS, width)
    mixings = [mixing(width, directions, np.random.default_rng((SEED, depth))) for depth in range(DEPTHS)]
    level = np.float32(spectrum(width)[directions - 1] ** 0.5)

    def block(depth: int, where: slice) -> np.ndarray:
        generator = np.random.default_rng((SEED, depth, where.start))
        size = where.stop - where.start
        z = generator.standard_normal((size, directions), dtype=np.float32)
        shared = min(KNOWING, directions)
        z[:, :shared] = np.sqrt(0.5, dtype=np.float32) * (z[:, :shared] + known[where, :shared])
        noise = generator.standard_normal((size, width), dtype=np.float32)
        return np.asarray(z @ mixings[depth] + level * noise)

    write_store(directory, task, depths=DEPTHS, d=width, dtype=DTYPE, block=block)


def fit(directory: Path, rows: int) -> dict[str, Any]:
    """Fit probes on the store; seconds, and this process's peak resident memory, mapped shards included."""
    from probekd.config import ProbeConfig
    from probekd.probes.fit import fit_probes
    from probekd.states import States, StateStore

    task = answers(rows)[1]
    config = ProbeConfig(folds=FOLDS, l2=STRENGTHS, windows=(1,), tolerance=TOLERANCE)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    began = time.perf_counter()
    probe = fit_probes(States((StateStore.open(directory),)), task, config=config)
    seconds = time.perf_counter() - began
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return {
        "seconds": round(seconds, 2),
        "peak_gib": round(peak / 2**20, 3),
        "before_gib": round(before / 2**20, 3),
        "accuracy": round(probe.scores["accuracy"], 4),
    }


def demonstrate(rows: int, width: int) -> dict[str, Any]:
    """Write a store in a temporary directory and fit probes on it, each in a process of its own."""
    with tempfile.TemporaryDirectory() as folder:
        store = Path(folder) / "store"

        def run(step: str) -> str:
            command = [sys.executable, __file__, step, str(store), str(rows), str(width)]
            return subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout

        run("write")
        size = sum(file.stat().st_size for file in store.glob("*.safetensors"))
        found: dict[str, Any] = json.loads(run("fit"))
    return {
        "rows": rows,
        "d": width,
        "depths": DEPTHS,
        "dtype": DTYPE,
        "store_gib": round(size / 2**30, 3),
        "one_depth_in_float32_gib": round(rows * width * 4 / 2**30, 3),
        "config": {"folds": FOLDS, "l2": STRENGTHS, "windows": [1], "tolerance": TOLERANCE},
        **found,
        "limit_gib": LIMIT_GIB,
        "under_limit": found["peak_gib"] < LIMIT_GIB,
    }


def main() -> None:
    """One step, for ``demonstrate``."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("step", choices=("write", "fit"))
    parser.add_argument("store", type=Path)
    parser.add_argument("rows", type=int)
    parser.add_argument("width", type=int)
    args = parser.parse_args()
    if args.step == "write":
        write(args.store, args.rows, args.width)
    else:
        print(json.dumps(fit(args.store, args.rows)))


if __name__ == "__main__":
    main()
