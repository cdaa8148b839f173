"""Tables of students: how fast they answer and how fast they learn."""

from __future__ import annotations

from typing import Any

from result_tables.markdown import markdown


def latency_table(result: dict[str, Any]) -> str:
    """Milliseconds a row by task, cores and batch size; the teacher in its fastest way."""
    rows, said = [], []
    for run in result["runs"]:
        for c in run["cells"]:
            if c["who"].startswith("teacher") and c["who"] != c["against"]:
                continue
            ms, times = c["milliseconds_a_row"], c["times_faster"]
            rows.append(
                [
                    run["task"],
                    str(c["cores"]),
                    str(c["batch"]),
                    c["who"] if c["who"].startswith("teacher") else f"student, {c['who']}",
                    f"{ms['median']:.2f} ({ms['min']:.2f} to {ms['max']:.2f})",
                    f"{times['median']:.1f}",
                ]
            )
        tokens = run["tokens_a_row"]
        int8 = run["parity"]["model_int8.onnx"]
        said.append(
            f"{run['task']}: {run['teacher']} reads {tokens['teacher']:.0f} tokens a row, of which all prompts share "
            f"{tokens['shared by all prompts']}; {run['student']} reads {tokens['student']:.0f}. With 8-bit weights "
            f"{100 * int8['agreement']:.0f}% of the picks stay, and the probabilities move by {int8['mean']:.3f} on average."
        )
    head = ("task", "cores", "batch", "who", "ms a row (range)", "times the teacher's speed")
    return markdown(head, rows) + "\n\n" + " ".join(said)


def whole_table(result: dict[str, Any]) -> str:
    """From an untouched teacher to a trained student, beside a teacher in the loop."""
    whole = result["online"]
    rows = [["probekd", *_seconds(whole["probekd"]["seconds"])]]
    rows += [[f"- {stage}", *_seconds(s)] for stage, s in whole["probekd"]["stages"].items()]
    gkd = whole["trl_gkd"]
    if "seconds" in gkd:
        rows.append(["TRL's GKD, the teacher in every step", *_seconds(gkd["seconds"])])
        faster = whole["times_faster"]
        each = ", ".join(f"{t:.2f}" for t in faster["runs"])
        said = f"probekd is {faster['median']:.2f} times as fast ({each})."
    else:
        said = f"TRL's GKD was not run: {gkd['not_run']}"
    return markdown(("what", "seconds", "each time"), rows) + f"\n\n{said}"


def _seconds(found: dict[str, Any]) -> tuple[str, str]:
    return f"{found['median']:.0f}", ", ".join(f"{run:.0f}" for run in found["runs"])


def training_table(result: dict[str, Any]) -> str:
    """A step beside a bare Trainer's."""
    rows = []
    for step in result["steps"]:
        seconds, ratio = step["seconds_a_step"], step["ratio"]
        rows.append(
            [
                step["task"],
                *(f"{1000 * seconds[who]['median']:.0f}" for who in ("probekd", "bare_trainer")),
                f"{ratio['median']:.3f} ({ratio['min']:.3f} to {ratio['max']:.3f})",
            ]
        )
    return markdown(("task", "ms a step", "bare Trainer", "ratio (range)"), rows)
