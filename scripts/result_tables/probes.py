"""Tables of the readers: the study of them, what was tried, simulations, and speed."""

from __future__ import annotations

from statistics import fmean
from typing import Any

from result_tables.markdown import markdown

METRICS = (("accuracy", 3), ("nll", 2), ("ece", 3))


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


def calibration_table(result: dict[str, Any]) -> str:
    """Held-out log-loss and ECE of each way to calibrate, and in how many cells it was surely better or worse."""
    cells = result["cells"]
    groups = sorted({(c["task"], c["labels"]) for c in cells})
    ways = list(cells[0]["ways"])
    rows = []
    for group in groups:
        own = [c["ways"] for c in cells if (c["task"], c["labels"]) == group]
        means = [[fmean(w[way]["held_out"][metric] for w in own) for metric in ("nll", "ece")] for way in ways]
        rows.append([*map(str, group), *(f"{nll:.3f} / {ece:.3f}" for nll, ece in means)])
    surely = []
    for way in ways[1:]:
        each = [c["ways"][way] for c in cells]
        better, worse = (sum(sign * w["gain"] > 2 * w["gain_se"] for w in each) for sign in (1, -1))
        surely.append(f"{better}, {worse} of {len(cells)}")
    rows.append(["surely better, worse", "", "", *surely])
    return markdown(("task", "labels", *ways), rows)


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
