"""Time the teacher pass beside the usual ways to read hidden states, and check that all of them read the same.

    python benchmarks/teacher_pass.py setup          an environment for each peer, once
    python benchmarks/teacher_pass.py [--repeats 3]  writes benchmarks/results/teacher_pass.json
    python benchmarks/teacher_pass.py --quick        a few rows and no peers, to see that all works

Every reader gets the same token sequences and keeps states of all depths at the same positions, in a process of its own
that loads once; repeats of all readers take turns. Peers take minutes over what ours reads in seconds, so they read some
of the batches that the whole makes in the data set's order; ours reads all of it, from tokenising to files that are
written. The variable PROBEKD_DATA names the directory of the benchmarks' files.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import re
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass, replace
from datetime import date
from importlib.metadata import version
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np
from rich.console import Console
from rich.table import Table

from pass_workloads import QUICK, WORKLOADS, Needs, Workload, needs_of, prompts_of, sample, sequences_of
from probekd.files import cache_dir, write_json
from probekd.teacher.load import load_tokenizer
from surroundings import machine

HERE = Path(__file__).resolve().parent
MODEL = HERE.parent / "models" / "smollm2-135m-instruct"
RESULTS = HERE / "results" / "teacher_pass.json"
BATCH = 16
# One Transformers for all, so that readers and not its releases are compared.
COMMON = ("torch==2.13.0", "transformers==5.23.0")
PEERS: Mapping[str, str] = {
    "transformer_lens": "transformer-lens==4.3.0",
    "nnsight": "nnsight==0.8.1",
    "lmprobe": "lmprobe==0.10.3",
    "sentence_transformers": "sentence-transformers==6.2.0",
}
# What ours is held against; sentence-transformers keeps no depths.
RIVALS = ("loop", "transformer_lens", "nnsight", "lmprobe")
# Largest difference of a state relative to the largest number of its depth: more than this is not rounding.
SAME = 1e-3
EFFICIENCY, HALF, STREAMED = 0.85, 0.55, 1.3
# Of the comparisons of ours with itself: measured sizes differ from one process to the next, and would be compared too.
CUT_TOKENS = 2048


def say(text: str) -> None:
    """Progress, on stderr."""
    print(text, file=sys.stderr, flush=True)


def spread(runs: Sequence[float]) -> dict[str, Any]:
    """Median and range of some repeats."""
    rounded = [round(r, 4) for r in runs]
    return {"median": statistics.median(rounded), "min": min(rounded), "max": max(rounded), "runs": rounded}


def scrubbed(text: str) -> str:
    """The last lines of an error, without the addresses and paths of this machine."""
    text = re.sub(r"\w+://\S+|host='[^']*'", "<address>", "\n".join(text.strip().splitlines()[-3:]))
    return re.sub(r"(?<![\w.])/[\w./+-]+", "<path>", text)


def setup(environments: Path) -> int:
    """Make each peer's environment; what stood in the way of one is kept beside it."""
    failed = 0
    for name, package in PEERS.items():
        folder, error = environments / name, environments / f"{name}.error.txt"
        say(f"{name}: {package}")
        error.unlink(missing_ok=True)
        subprocess.run([sys.executable, "-m", "venv", folder], check=True)
        install = [str(folder / "bin" / "python"), "-m", "pip", "install", "--quiet", package, *COMMON]
        done = subprocess.run(install, capture_output=True, text=True)
        if done.returncode:
            failed += 1
            error.write_text(scrubbed(done.stderr) + "\n")
            say(f"{name} cannot be installed: {error.read_text()}")
    return failed


class Child:
    """A reader in a process of its own; everything that fails there is kept as its ``error``."""

    def __init__(self, name: str, python: Path, job: Path) -> None:
        kind = name.partition(" ")[0]
        command = [str(python), str(HERE / "pass_readers.py"), kind, str(job)]
        self.name, self.error = name, ""
        self._log = job.with_suffix(".log").open("w+")
        self._process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=self._log, text=True
        )
        self.told = self._answer()

    def ask(self, line: str) -> dict[str, Any]:
        """Have it do something; empty once it has failed."""
        if self.error:
            return {}
        assert self._process.stdin is not None
        print(line, file=self._process.stdin, flush=True)
        return self._answer()

    def _answer(self) -> dict[str, Any]:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            self._log.seek(0)
            line = json.dumps({"error": f"it ended: {self._log.read()}"})
        found: dict[str, Any] = json.loads(line)
        if "error" in found:
            self.error = scrubbed(found["error"])
            say(f"  {self.name}: {self.error}")
        return found

    def __enter__(self) -> Child:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        assert self._process.stdin is not None
        self._process.stdin.close()
        self._process.wait()
        self._log.close()


@dataclass(frozen=True, kw_only=True)
class Plan:
    """What one comparison is made of.

    Attributes:
        model: Directory of the model.
        workload: The rows.
        readers: Reader -> options of ours; what follows a blank in a name tells several of ours apart.
        environments: Directory of the peers' environments.
        repeats: Of every reader.
        peer_batches: Batches that the others read.
    """

    model: Path
    workload: Workload
    readers: Mapping[str, Mapping[str, Any]]
    environments: Path
    repeats: int
    peer_batches: int


def run(plan: Plan) -> tuple[dict[str, Any], Needs]:
    """Every reader's repeats in turn, and what the rows need."""
    say(f"{plan.workload.name}, {plan.workload.rows} rows")
    tokenizer = load_tokenizer(plan.model)
    prompts = prompts_of(plan.workload, tokenizer)
    sequences = sequences_of(prompts, tokenizer)
    needs = needs_of(prompts)
    some = sample(sequences, BATCH, plan.peer_batches)
    found: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as place, ExitStack() as stack:
        children: dict[str, Child] = {}
        for number, (name, ours) in enumerate(plan.readers.items()):
            python = Path(sys.executable) if name not in PEERS else plan.environments / name / "bin" / "python"
            error = plan.environments / f"{name}.error.txt"
            if error.is_file() or not python.is_file():
                found[name] = {"not_run": error.read_text().strip() if error.is_file() else "not installed: run setup"}
                continue
            job = Path(place) / f"job-{number}.json"
            write_json(job, {**_job(plan, some, tokenizer.pad_token_id or 0, place), "ours": ours})
            children[name] = stack.enter_context(Child(name, python, job))
            say(f"  {name} is ready after {children[name].told.get('seconds', 0):.1f} s")
        runs: dict[str, list[dict[str, Any]]] = {name: [] for name in children}
        for repeat in range(plan.repeats):
            for name, child in children.items():
                # A streamed block has no weights here to multiply with.
                roof = name.startswith("probekd") and "memory" not in plan.readers[name]
                rates = [child.ask("gemm")] if roof else []
                runs[name].append(child.ask("go"))
                # Before and after: a machine that is busy for a while must not move the roof alone.
                rates += [child.ask("gemm")] if roof else []
                if rates and not child.error:
                    runs[name][-1]["flops_per_second"] = statistics.mean(r["flops_per_second"] for r in rates)
                say(f"  repeat {repeat + 1}: {name} {runs[name][-1].get('seconds', 0):.2f} s")
        # Where the time that the roof does not explain goes; last, since profiling slows a pass down.
        profiles = {name: child.ask("profile") for name, child in children.items() if name == "probekd"}
        states = {
            name: _states(child, Path(place) / f"{number}.npz") for number, (name, child) in enumerate(children.items())
        }
        for name, child in children.items():
            own = name.startswith("probekd")
            tokens = needs.asked if own else sum(len(s["tokens"]) for s in some)
            found[name] = (
                {"not_run": child.error}
                if child.error
                else _described(child, runs[name], tokens, needs if own else None) | _agreement(states, children, name)
            )
            if profiles.get(name):
                found[name]["profile"] = {what: round(share, 3) for what, share in profiles[name].items()}
    return found, needs


def _job(plan: Plan, some: list[dict[str, Any]], pad: int, place: str) -> dict[str, Any]:
    checked = sorted({i * (len(some) - 1) // 3 for i in range(4)})
    workload = asdict(plan.workload)
    return {
        "model": str(plan.model),
        "batch": BATCH,
        "pad": pad,
        "sequences": some,
        "checked": checked,
        "workload": workload,
        "scratch": place,
    }


def _described(child: Child, runs: list[dict[str, Any]], tokens: int, needs: Needs | None) -> dict[str, Any]:
    told = child.told
    found: dict[str, Any] = {
        "seconds": spread([r["seconds"] for r in runs]),
        "tokens": tokens,
        "tokens_per_second": spread([tokens / r["seconds"] for r in runs]),
        "peak_gib": round(max(r["peak_gib"] for r in runs), 3),
        "versions": told["versions"],
    }
    if needs is not None and "flops_per_second" in runs[0]:
        flops = needs.flops(linear=told["linear"], inner=told["inner"], blocks=told["blocks"])
        rates = [r["flops_per_second"] for r in runs]
        found |= {
            "batch_tokens": told["batch_tokens"],
            "seconds_measuring_batch_size": told["seconds_measuring_batch_size"],
            "needed_gflop": round(flops / 1e9, 6),
            "gemm_gflops": spread([r / 1e9 for r in rates]),
            "efficiency": spread([flops / (rate * r["seconds"]) for r, rate in zip(runs, rates, strict=True)]),
        }
    return found


def _states(child: Child, path: Path) -> list[np.ndarray]:
    child.ask(f"save {path}")
    if child.error or not path.is_file():
        return []
    with np.load(path) as arrays:
        return [arrays[name] for name in arrays.files]


def _agreement(states: Mapping[str, list[np.ndarray]], children: Mapping[str, Child], name: str) -> dict[str, Any]:
    """The largest relative difference from the loop's states, at depths that both have before any final norm."""
    theirs, ours = states.get("loop", []), states[name]
    if name == "loop" or not theirs or not ours or len(ours[0]) == 1:
        return {}
    first = children[name].told["first"]
    worst = 0.0
    for a, b in zip(ours, theirs, strict=True):
        for depth in range(first, len(b) - 1):
            worst = max(worst, float(np.abs(a[depth - first] - b[depth]).max() / np.abs(b[depth]).max()))
    return {"differs_by": worst, "compared_depths": [first, len(theirs[0]) - 2], "agrees": worst <= SAME}


def judged(workload: Workload, found: dict[str, Any], needs: Needs) -> dict[str, Any]:
    """One workload's part of the result."""
    rate = {n: f["tokens_per_second"]["median"] for n, f in found.items() if "seconds" in f}
    best = max((n for n in RIVALS if n in rate), key=lambda n: rate[n], default=None)
    part: dict[str, Any] = {
        **asdict(workload),
        "tokens": needs.asked,
        "computed_tokens": needs.computed,
        "readers": found,
    }
    if best is not None and "probekd" in rate:
        ours = found["probekd"]
        part |= {"best_rival": best, "times_best": round(rate["probekd"] / rate[best], 3)}
        part["met"] = {
            **({} if workload.target is None else {"times_best": part["times_best"] >= workload.target}),
            "efficiency": ours["efficiency"]["median"] >= EFFICIENCY,
            "memory": "loop" not in rate or ours["peak_gib"] <= found["loop"]["peak_gib"],
            "same_states": bool(ours.get("agrees")),
        }
    return part


def cuts(found: dict[str, Any]) -> dict[str, Any]:
    """Reading half the depth against all of it, and streamed against in memory."""

    def ratio(a: str, b: str) -> dict[str, Any]:
        both = zip(found[a]["seconds"]["runs"], found[b]["seconds"]["runs"], strict=True)
        return spread([x / y for x, y in both])

    pairs = {
        "half_depth": ("probekd half", "probekd last", HALF),
        "streamed": ("probekd streamed", "probekd", STREAMED),
    }
    part: dict[str, Any] = {}
    for name, (a, b, target) in pairs.items():
        if "seconds" in found[a] and "seconds" in found[b]:
            times = ratio(a, b)
            part[name] = {"times": times, "target": target, "met": times["median"] <= target}
    return part


def measure(args: argparse.Namespace) -> dict[str, Any]:
    """The result file."""
    from transformers import AutoConfig

    began = time.perf_counter()
    blocks = AutoConfig.from_pretrained(args.model).num_hidden_layers
    workloads = QUICK if args.quick else WORKLOADS
    names = {"loop", "probekd"} if args.quick else {"loop", *PEERS, "probekd"} - set(args.without)
    readers = [n for n in ("loop", *PEERS, "probekd") if n in names]
    plan = Plan(
        model=args.model,
        workload=workloads[0],
        readers={name: {} for name in readers},
        environments=args.environments,
        repeats=args.repeats,
        peer_batches=args.peer_batches,
    )
    parts = []
    for workload in workloads:
        # What MMLU's long prompts take of a batch would be enough for ten of the others.
        batches = args.long_batches if workload.shots else args.peer_batches
        found, needs = run(replace(plan, workload=_sized(workload, args.rows), peer_batches=batches))
        parts.append(judged(_sized(workload, args.rows), found, needs))
    own = {
        "probekd": {},
        "probekd streamed": {"memory": "streamed"},
        "probekd half": {"depth": (blocks + 1) // 2},
        "probekd last": {"depth": blocks},
        "probekd outputs": {"outputs": True},
    }
    listed = _sized(next(w for w in workloads if w.layout == "listed"), args.cut_rows or args.rows)
    found, needs = run(
        replace(
            plan, workload=listed, readers={name: {**ours, "batch_tokens": CUT_TOKENS} for name, ours in own.items()}
        )
    )
    return {
        "date": date.today().isoformat(),
        "machine": machine(),
        "versions": {
            "python": platform.python_version(),
            **{n: version(n) for n in ("probekd", "torch", "transformers", "numpy")},
        },
        "model": args.model.name,
        "how": {
            "repeats": args.repeats,
            "batch": f"the others: {BATCH} sequences in the data set's order, padded; ours: batch_tokens, measured",
            "others_read": f"{args.peer_batches} of the whole's batches ({args.long_batches} with shots), evenly spread, whose "
            "tokens and padding are nearest to the whole's",
            "ours_read": "everything, into an empty cache: tokenising, planning, checking, writing; outputs off, as the "
            "others' are not kept either",
            "kept": "states of all depths at answer and option_end; ours option_mean as well",
            "peak_gib": "largest resident set of the reader's process, its loading included",
            "efficiency": "needed_gflop / (gemm_gflops * seconds): products of a block's linear layers alone at "
            "batch_tokens, measured before and after each repeat, against 2 * linear parameters * computed tokens and the "
            "products of attention",
            "sentence_transformers": "encode of the same texts by the same model's body with mean pooling: no depths",
        },
        "targets": {"efficiency": EFFICIENCY, "half_depth": HALF, "streamed": STREAMED},
        "workloads": parts,
        "cuts": {**asdict(listed), "tokens": needs.asked, "readers": found, **cuts(found)},
        "total_seconds": round(time.perf_counter() - began, 1),
    }


def _sized(workload: Workload, rows: int | None) -> Workload:
    return workload if rows is None else replace(workload, rows=min(rows, workload.rows))


def show(result: dict[str, Any]) -> None:
    """Print the table."""
    console = Console(width=None if sys.stdout.isatty() else 150)
    table = Table(title=f"{result['model']}: tokens asked for a second, medians of {result['how']['repeats']} repeats")
    for column in ("workload", "reader", "tokens/s (range)", "ours is", "peak GiB", "of the roof", "differs by"):
        table.add_column(column, justify="left" if column in ("workload", "reader") else "right", no_wrap=True)
    for part in (*result["workloads"], result["cuts"]):
        ours = part["readers"]["probekd"].get("tokens_per_second", {}).get("median", float("nan"))
        for name, found in part["readers"].items():
            if "not_run" in found:
                table.add_row(part["name"], name, f"not run: {found['not_run'].splitlines()[-1][:40]}")
                continue
            t = found["tokens_per_second"]
            table.add_row(
                part["name"],
                name,
                f"{t['median']:.0f} ({t['min']:.0f} to {t['max']:.0f})",
                f"{ours / t['median']:.2f} x",
                f"{found['peak_gib']:.2f}",
                f"{found['efficiency']['median']:.2f}" if "efficiency" in found else "",
                f"{found['differs_by']:.1e}" if "differs_by" in found else "",
            )
        table.add_section()
    console.print(table)
    for part in result["workloads"]:
        if "met" in part:
            console.print(f"{part['name']}: {part['times_best']} times {part['best_rival']}; met: {part['met']}")
    for name in ("half_depth", "streamed"):
        if name in result["cuts"]:
            one = result["cuts"][name]
            console.print(f"{name}: {one['times']['median']:.3f} times the time; at most {one['target']}")


def main() -> int:
    """Measure, print and write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", nargs="?", choices=("measure", "setup"), default="measure")
    parser.add_argument("--model", type=Path, default=MODEL, help="directory of a Llama-like causal model")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--rows", type=int, help="at most this many rows of a workload")
    parser.add_argument("--cut-rows", type=int, help="at most this many rows in the comparisons of ours with itself")
    parser.add_argument("--peer-batches", type=int, default=4, help="batches that the others read")
    parser.add_argument("--long-batches", type=int, default=1, help="the same with worked examples")
    parser.add_argument("--without", nargs="*", default=[], choices=(*PEERS, "loop"), help="peers to leave out")
    parser.add_argument("--environments", type=Path, default=cache_dir() / "peers", help="where setup installs")
    parser.add_argument("--quick", action="store_true", help="a few rows of a task that ships with probekd, no peers")
    parser.add_argument("--output", type=Path, default=RESULTS, help="result file")
    args = parser.parse_args()
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    if args.what == "setup":
        return setup(args.environments)
    result = measure(args)
    show(result)
    write_json(args.output, result)
    return 0


if __name__ == "__main__":
    sys.exit(main())
