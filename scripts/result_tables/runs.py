"""The table of a run."""

from __future__ import annotations

from typing import Any

WHO = {
    "teacher_output": "the teacher's best output readout",
    "probe": "the probe on its hidden states",
    "student": "student trained by `probe-kd`",
    "student:labels": "student trained on the labels alone",
}


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
