"""Keep a finished run's figures in studies/results, and put tables of all results into the README and docs.

    python scripts/make_results.py runs/quickstart runs/arc_easy
    python scripts/make_results.py --check

Tables stand between ``<!-- results:NAME -->`` and ``<!-- end -->``; they are made from the committed file NAME.json in
studies/results or benchmarks/results, and from nothing else. ``--check`` says whether they still are.
"""

from __future__ import annotations

import argparse
import json
import re
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from statistics import fmean
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
RESULTS = ROOT / "studies" / "results"
BENCHMARKS = ROOT / "benchmarks" / "results"
PAGES = tuple(ROOT / name for name in ("README.md", "docs/probes.md", "docs/teacher.md"))
METRICS = (("accuracy", 3), ("nll", 2), ("ece", 3))
WHO = {
    "teacher_output": "the teacher's best output readout",
    "probe": "the probe on its hidden states",
    "student": "student trained by `probe-kd`",
    "student:labels": "student trained on the labels alone",
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


def markdown(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A table in Markdown."""
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def readers_table(result: dict[str, Any]) -> str:
    """Task by task what the chosen reader, the best single logistic probe and the best output readout read."""
    shown = {"chosen": "chosen reader", "logistic": "single logistic probe", "output": "output readout"}
    rows = []
    for row in result["rows"]:
        scores = (
            " / ".join(f"{row[f'{who}.{where}.{metric}']:.{digits}f}" for metric, digits in METRICS)
            for who, where in (("chosen", "out_of_fold"), *((who, "held_out") for who in shown))
        )
        worse = f"{row['worse_by_more_than_se']} of {row['seeds']}"
        rows.append([row["task"], str(row["labels"]), *scores, f"{row['chosen.ece_if_calibrated']:.3f}", worse])
    head = ("task", "labels", "chosen, out of fold", *shown.values(), "ECE by chance", "worse")
    refused = {(c["task"], c["labels"]): c["refused"].split(";")[0] for c in result["refused"]}
    said = "".join(
        f" {task} with {labels} labels is refused: {why}." for (task, labels), why in sorted(refused.items())
    )
    for row in result["rows"]:
        if (row["task"], row["labels"]) == ("arc_easy", 200):
            first = (f"{share:.3f}" for share in row["chosen.first_600_of_four"])
            said += (
                f" Of ARC-Easy's first 600 four-option rows the chosen reader gets {', '.join(first)} with 200 labels."
            )
    return (
        markdown(head, rows)
        + "\n\nAccuracy / log-loss / ECE, on held-out rows but for the first; means over the seeds. *Worse*: seeds in which "
        + "the chosen reader's held-out log-loss is above the single logistic probe's by more than a standard error."
        + said
    )


def families_table(result: dict[str, Any]) -> str:
    """Held-out log-loss of the families and combinations, task by task, with one seed's labels."""
    shown = {
        "logistic": "logistic",
        "ridge": "ridge",
        "mass_mean": "mass mean",
        "windows": "logistic, windows",
        "chosen": "logistic, windows, stack (chosen)",
        "with_ridge": "the same with ridge",
    }
    rows = [
        [row["task"], str(row["labels"]), *("" if loss is None else f"{loss:.3f}" for loss in losses)]
        for row in result["rows"]
        for losses in ([row[f"families.{who}.held_out.nll"] for who in shown],)
    ]
    return markdown(("task", "labels", *shown.values()), rows)


def shift_table(result: dict[str, Any]) -> str:
    """What words that learned nothing are worth on training and on held-out rows."""

    def said(at: dict[str, float], what: str, digits: int) -> str:
        return f"{at[what]:.{digits}f} ± {at[what + '_error']:.{digits}f}"

    rows = [
        [
            r["task"],
            r["readout"].removeprefix("option_likelihood, "),
            *(
                said(r[s], what, digits)
                for what, digits in (("accuracy", 3), ("temperature", 2))
                for s in ("train", "test")
            ),
        ]
        for r in result["rows"]
    ]
    head = (
        "task",
        "likelihood",
        "accuracy, training rows",
        "held-out rows",
        "best temperature, training rows",
        "held-out rows",
    )
    return markdown(head, rows)


def ideas_table(result: dict[str, Any]) -> str:
    """Held-out log-loss of each idea, and in how many cells it was surely better or worse than the plain probe."""
    cells = result["cells"]
    ideas = [name for name in cells[0] if name not in ("task", "labels", "seed")]
    groups = sorted({(c["task"], c["labels"]) for c in cells})
    rows = []
    for idea in ideas:
        means = [fmean(c[idea]["held_out"]["nll"] for c in cells if (c["task"], c["labels"]) == g) for g in groups]
        better, worse = (sum(sign * c[idea]["gain"] > 2 * c[idea]["gain_se"] for c in cells) for sign in (1, -1))
        rows.append([idea, *(f"{m:.3f}" for m in means), f"{better}, {worse} of {len(cells)}"])
    return markdown(("idea", *(f"{task}, {labels}" for task, labels in groups), "surely better, worse"), rows)


def simulations_table(result: dict[str, Any]) -> str:
    """The simulated figures that have a target, those of one kind together, and the naive ones beside them."""
    kinds: dict[str, list[dict[str, Any]]] = {}
    for f in result["figures"]:
        if f["target"] is not None or "naive" in f["name"]:
            grouped = {"coverage": "coverage of predictions given", "probe-kd said": "probe-kd said of equals"}
            kind = next((title for start, title in grouped.items() if f["name"].startswith(start)), f["name"])
            kinds.setdefault(kind, []).append(f)
    rows = []
    for kind, members in kinds.items():
        low, high = (pick(members, key=lambda f: f["value"]) for pick in (min, max))
        value = f"{low['value']:.3f}" + (f" to {high['value']:.3f}" if len(members) > 1 else "")
        target = members[0]["target"]
        inside = sum(bool(f["pass"]) for f in members)
        rows.append(
            [
                kind,
                f"{value}, ± {max(f['se'] for f in members):.3f}",
                "" if target is None else f"{target[0]:g} to {target[1]:g}",
                "" if target is None else f"{inside} of {len(members)}",
            ]
        )
    return markdown(("simulated", "figure, standard error", "target", "inside"), rows)


def benchmark_table(result: dict[str, Any]) -> str:
    """Seconds of each solver, medians of the repeats."""
    rows = []
    for c in result["comparisons"]:
        for name, found in c["solvers"].items():
            if "seconds" in found:
                seconds = found["seconds"]
                spread = f"{seconds['median']:.1f} ({seconds['min']:.1f} to {seconds['max']:.1f})"
                times = f"{found['times_ours']:.0f}" if "times_ours" in found else ""
                size = f"{c['n']} x {c['d']}, {c['depths']} depths"
                rows.append([size, c["kind"], name, spread, times, f"{found['worst_excess_loss']:.0e}"])
    whole = result["fit_probes"]
    seconds = whole["seconds"]
    return (
        markdown(("rows x width", "kind", "solver", "seconds", "times ours", "loss above the optimum"), rows)
        + f"\n\nA whole `fit_probes` on {whole['n']} x {whole['d']}, {whole['depths']} depths: {seconds['median']:.1f} s "
        + f"({seconds['min']:.1f} to {seconds['max']:.1f}). Medians of {result['how']['repeats']} repeats (range); rivals "
        + "are timed on some of the depths and scaled."
    )


def pass_scale_table(result: dict[str, Any]) -> str:
    """Time and memory of extraction by number of rows."""
    rows = [
        [f"{r['rows']:,}", f"{r['milliseconds_a_row']:.2f}", f"{r['peak_mib']:.0f}", str(len(r["runs"]))]
        for r in result["sizes"]
    ]
    spread = result["spread"]
    return (
        markdown(("rows", "ms a row", "peak MiB", "runs"), rows)
        + f"\n\nExtraction with a tiny teacher; the largest over the smallest: {spread['milliseconds_a_row']:.2f} in time, "
        + f"{spread['peak_mib']:.2f} in memory."
    )


def large_teacher_table(result: dict[str, Any]) -> str:
    """A teacher that is streamed, and a sibling that fits both ways."""
    large, sibling = result["large"], result["sibling"]
    ratios = ", ".join(f"{r:.2f}" for r in sibling["ratio"])
    return (
        f"A random Llama of {large['parameters'] / 1e9:.2f} billion parameters in bfloat16, streamed: peak resident memory "
        f"{large['peak_gib']:.2f} GiB, {large['tokens']} prompt tokens in {large['pass_seconds']:.0f} s. A sibling of "
        f"{sibling['blocks']} blocks: streamed takes {sibling['median_ratio']:.2f} times as long as in memory ({ratios}), and "
        f"its states differ by {sibling['largest_relative_difference']:.0e} at most."
    )


def table(name: str, result: dict[str, Any]) -> str:
    """The block for one result."""
    return TABLES[name](result) if name in TABLES else run_table(name, result)


def run_table(name: str, result: dict[str, Any]) -> str:
    """The block for a run."""
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
            f"| {_name(who)} | {s['accuracy']:.3f} | {low:.3f} to {high:.3f} | {s['nll']:.2f} | {s['ece']:.3f} |"
        )
    reader = probe["reader"]
    lines += [
        "",
        f"Gate, before any student was trained: **{gate['verdict']}**, since {gate['reason']}.",
        f"The probe reads `{reader['layout']}` / `{reader['position']}` at depth {reader['depth']} of {probe['depths']}. "
        f"The run took {seconds / 60:.1f} minutes on two CPU cores.",
    ]
    return "\n".join(lines)


def _name(who: str) -> str:
    return WHO.get(who) or f"student trained by `{who.removeprefix('student:')}`"


def pass_table(result: dict[str, Any]) -> str:
    """Tokens a second of every reader, and where the time of ours goes."""
    rows, profiles = [], []
    for part in result["workloads"]:
        ours = part["readers"]["probekd"]
        for name, found in part["readers"].items():
            if "tokens_per_second" not in found:
                rows.append([part["name"], name, f"not run: {found['not_run'].splitlines()[-1]}", "", "", ""])
                continue
            t = found["tokens_per_second"]
            rows.append(
                [
                    part["name"],
                    name,
                    f"{t['median']:.0f} ({t['min']:.0f} to {t['max']:.0f})",
                    "" if name == "probekd" else f"{ours['tokens_per_second']['median'] / t['median']:.2f}",
                    f"{found['peak_gib']:.2f}",
                    f"{found['efficiency']['median']:.2f}" if "efficiency" in found else "",
                ]
            )
        if "profile" in ours:
            shares = ", ".join(f"{what} {100 * share:.0f}%" for what, share in ours["profile"].items())
            profiles.append(f"- {part['name']}: {shares}.")
    cuts = result["cuts"]
    return "\n".join(
        [
            markdown(("workload", "reader", "tokens/s (range)", "ours, times", "peak GiB", "of the roof"), rows),
            "",
            f"Half the depth takes {cuts['half_depth']['times']['median']:.2f} of the time of all of it, streaming "
            f"{cuts['streamed']['times']['median']:.2f} of the time in memory. Medians of {result['how']['repeats']} repeats in "
            f"turn, {result['date']}. Where one more pass spends its time, on one thread:",
            "",
            *profiles,
        ]
    )


def whole_task_table(result: dict[str, Any]) -> str:
    """A benchmark read whole, in one sentence."""
    return (
        f"All {result['rows']:,} rows of {result['task']}, in {len({s['layout'] for s in result['stores']})} layouts and at every "
        f"depth: {result['tokens']:,} prompt tokens in {result['seconds'] / 60:.1f} minutes, {result['bytes'] / 2**30:.1f} GiB on disk."
    )


# The results that are not those of a run; ``NAME.PART`` shows another part of a file.
TABLES: Mapping[str, Callable[[dict[str, Any]], str]] = {
    "readers": readers_table,
    "readers.families": families_table,
    "shift": shift_table,
    "ideas": ideas_table,
    "simulations": simulations_table,
    "probes": benchmark_table,
    "scale": pass_scale_table,
    "whole_task": whole_task_table,
    "large_teacher": large_teacher_table,
    "teacher_pass": pass_table,
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
    return {path.stem: json.loads(path.read_text(encoding="utf-8")) for path in paths}


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
