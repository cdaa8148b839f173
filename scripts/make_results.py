"""Keep a finished run's figures in studies/results and put its table into the README.

    python scripts/make_results.py runs/quickstart runs/arc_easy
    python scripts/make_results.py --check

The README's tables stand between ``<!-- results:NAME -->`` and ``<!-- end -->``; they are made from the committed files
in studies/results, and from nothing else. ``--check`` says whether they still are.
"""

from __future__ import annotations

import argparse
import json
import re
import sys
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
RESULTS = ROOT / "studies" / "results"
README = ROOT / "README.md"
WHO = {
    "teacher_output": "the teacher's best output readout",
    "probe": "the probe on its hidden states",
    "student": "student trained by `probe-kd`",
    "student:labels": "student trained on the labels alone",
    "student:logit-kd": "student trained by `logit-kd`",
}


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


def table(name: str, result: dict[str, Any]) -> str:
    """The README's block for one result."""
    scores = result["metrics"]["test"]
    gate = result["metrics"]["gate"]
    probe = result["probe"]
    seconds = sum(s["seconds"] for s in result["stages"].values())
    n = scores["probe"]["n"]
    lines = [
        f"| {name}: {n} test rows, {probe['labelled']} labels | accuracy | 95% interval | NLL | ECE |",
        "|---|---|---|---|---|",
    ]
    for who, s in scores.items():
        low, high = s["accuracy_ci"]
        lines.append(
            f"| {WHO[who]} | {s['accuracy']:.3f} | {low:.3f} to {high:.3f} | {s['nll']:.2f} | {s['ece']:.3f} |"
        )
    reader = probe["reader"]
    lines += [
        "",
        f"Gate, before any student was trained: **{gate['verdict']}**, since {gate['reason']}.",
        f"The probe reads `{reader['layout']}` / `{reader['position']}` at depth {reader['depth']} of {probe['depths']}. "
        f"The run took {seconds / 60:.1f} minutes on two CPU cores.",
    ]
    return "\n".join(lines)


def fill(readme: str, results: dict[str, dict[str, Any]]) -> str:
    """The README with every results block made anew."""

    def block(match: re.Match[str]) -> str:
        name = match[1]
        return f"<!-- results:{name} -->\n{table(name, results[name])}\n<!-- end -->"

    return re.sub(r"<!-- results:(\w+) -->.*?<!-- end -->", block, readme, flags=re.DOTALL)


def main() -> int:
    """Collect the named runs, then make the README's tables or check them."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs", nargs="*", type=Path, help="finished run directories")
    parser.add_argument("--check", action="store_true", help="only say whether the README agrees with studies/results")
    args = parser.parse_args()
    RESULTS.mkdir(parents=True, exist_ok=True)
    for run in args.runs:
        text = json.dumps(collect(run), indent=1, ensure_ascii=False) + "\n"
        (RESULTS / f"{run.name}.json").write_text(text, encoding="utf-8")
    results = {path.stem: json.loads(path.read_text(encoding="utf-8")) for path in sorted(RESULTS.glob("*.json"))}
    before = README.read_text(encoding="utf-8")
    after = fill(before, results)
    if args.check:
        print(
            "the README agrees with studies/results" if before == after else "the README differs from studies/results"
        )
        return int(before != after)
    README.write_text(after, encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
