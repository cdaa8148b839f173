"""How long does a whole benchmark take? Every row of every split of a task, in each of its layouts, into an empty cache.

    python benchmarks/whole_task.py [TASK]

The benchmarks' files are found through the variable PROBEKD_DATA. ARC-Easy, 5,190 rows, should take less than 12 minutes.
The result file keeps one figure for each kind of processor.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import time
from datetime import date
from pathlib import Path
from typing import Any

from surroundings import machine

ROOT = Path(__file__).resolve().parent.parent
RESULTS = ROOT / "benchmarks" / "results" / "whole_task.json"
TEACHER = ROOT / "models" / "smollm2-135m-instruct"
MOST_SECONDS = 12 * 60


def read(name: str) -> dict[str, Any]:
    """Extract the task's states at all depths and positions, words included; seconds from loading to the last manifest."""
    from probekd.extraction import extract
    from probekd.tasks import load_task

    task = load_task(name, on_overlap="keep")
    with tempfile.TemporaryDirectory() as cache:
        began = time.perf_counter()
        states = extract(TEACHER, task, cache=Path(cache))
        seconds = time.perf_counter() - began
        manifests = [s.manifest for s in states.stores]
    kept = ("split", "layout", "rows", "tokens", "seconds", "positions")
    return {
        "task": name,
        "rows": len(task.rows()),
        "tokens": sum(m["tokens"] for m in manifests),
        "seconds": round(seconds, 1),
        "bytes": sum(shard["bytes"] for m in manifests for shard in m["shards"]),
        "stores": [{k: m[k] for k in kept} for m in manifests],
    }


def main() -> int:
    """Measure and write the result file; 1 when the target is missed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("task", nargs="?", default="arc_easy")
    parser.add_argument("--output", type=Path, default=RESULTS)
    args = parser.parse_args()
    found = read(args.task)
    result = {
        "date": date.today().isoformat(),
        "machine": machine(),
        **found,
        "targets": {"seconds": MOST_SECONDS},
        "met": {"seconds": found["seconds"] <= MOST_SECONDS},
    }
    known = json.loads(args.output.read_text()) if args.output.is_file() else {}
    # Processors of one name may have AVX-512 or not.
    kind = "{cpu}, {instructions}".format(**result["machine"])
    args.output.write_text(json.dumps({**known, kind: result}, indent=1) + "\n")
    print(f"{found['task']}: {found['rows']:,} rows, {found['tokens']:,} tokens in {found['seconds'] / 60:.1f} minutes")
    return 0 if result["met"]["seconds"] else 1


if __name__ == "__main__":
    sys.exit(main())
