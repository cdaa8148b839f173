"""Keep a finished run's figures in studies/results, and put tables of all results into the README and docs.

    python scripts/make_results.py runs/quickstart runs/arc_easy
    python scripts/make_results.py --check

Tables stand between ``<!-- results:NAME -->`` and ``<!-- end -->``; they are made from the committed file NAME.json in
studies/results or benchmarks/results, or the summary of a study there, and from nothing else. ``--check`` says whether they still are.
"""

from __future__ import annotations

import argparse
import json
import re
import sys
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq

from result_tables import table

ROOT = Path(__file__).resolve().parents[1]
RESULTS = ROOT / "studies" / "results"
BENCHMARKS = ROOT / "benchmarks" / "results"
PAGES = tuple(
    ROOT / f
    for f in (
        "README.md",
        *(f"docs/{name}.md" for name in ("probes", "probes-evidence", "teacher", "students", "study")),
    )
)


def collect(run: Path) -> dict[str, Any]:
    """What is worth keeping of a run: its scores, the gate, the chosen reader, the costs, and the versions."""
    metrics = json.loads((run / "metrics.json").read_text(encoding="utf-8"))
    probe = json.loads((run / "probes" / "probe.json").read_text(encoding="utf-8"))
    record = json.loads((run / "run.json").read_text(encoding="utf-8"))
    stages = {name: {k: s[k] for k in ("seconds", "tokens")} for name, s in record["stages"].items()}
    kept = ("reader", "depths", "labelled", "out_of_fold", "output_readouts", "optimism", "controls")
    return {
        "metrics": metrics,
        "probe": {k: probe[k] for k in kept},
        "config": (run / "config.yaml").read_text(encoding="utf-8"),
        "stages": stages,
        "versions": record["versions"],
        "notes": record["notes"],
    }


def fill(page: str, results: dict[str, dict[str, Any]]) -> str:
    """A page with every results block made anew."""

    def block(match: re.Match[str]) -> str:
        name = match[1]
        return f"<!-- results:{name} -->\n{table(name, results[name.split('.')[0]])}\n<!-- end -->"

    return re.sub(r"<!-- results:([\w.]+) -->.*?<!-- end -->", block, page, flags=re.DOTALL)


def committed() -> dict[str, dict[str, Any]]:
    """Every result file by name."""
    paths = [*sorted(RESULTS.glob("*.json")), *sorted(BENCHMARKS.glob("*.json"))]
    results = {path.stem: json.loads(path.read_text(encoding="utf-8")) for path in paths}
    for path in sorted(RESULTS.glob("*/summary.json")):
        differences = pq.read_table(path.with_name("comparisons.parquet")).to_pylist()
        results[path.parent.name] = {**json.loads(path.read_text(encoding="utf-8")), "comparisons": differences}
    return results


def main() -> int:
    """Collect the named runs, then make the README's tables or check them."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs", nargs="*", type=Path, help="finished run directories")
    parser.add_argument("--check", action="store_true", help="only say whether the pages agree with the results")
    args = parser.parse_args()
    RESULTS.mkdir(parents=True, exist_ok=True)
    for run in args.runs:
        text = json.dumps(collect(run), indent=1, ensure_ascii=False) + "\n"
        (RESULTS / f"{run.name}.json").write_text(text, encoding="utf-8")
    results = committed()
    stale = []
    for page in PAGES:
        before = page.read_text(encoding="utf-8")
        after = fill(before, results)
        if before != after and args.check:
            stale.append(page.name)
        elif before != after:
            page.write_text(after, encoding="utf-8")
    if args.check:
        print(f"{', '.join(stale)} differ from the results" if stale else "all pages agree with the results")
    return int(bool(stale))


if __name__ == "__main__":
    sys.exit(main())
