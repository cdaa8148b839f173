"""Tables of the teacher pass: speed, memory, size."""

from __future__ import annotations

from typing import Any

from result_tables.markdown import markdown


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
        + f"{spread['peak_mib']:.2f} in memory. Eight rows take {result['sizes'][0]['seconds_of_eight_rows']:.2f} s."
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


def whole_task_table(results: dict[str, Any]) -> str:
    """A benchmark read whole, a sentence for each kind of processor."""
    return "\n\n".join(
        f"{kind}, {result['machine']['cores']} cores: all {result['rows']:,} rows of {result['task']}, in "
        f"{len({s['layout'] for s in result['stores']})} layouts and at every depth: {result['tokens']:,} prompt tokens in "
        f"{result['seconds'] / 60:.1f} minutes, {result['bytes'] / 2**30:.1f} GiB on disk."
        for kind, result in results.items()
    )
