"""Do time and memory grow with the rows? Extraction of 1,000 to 100,000 rows with a tiny teacher.

    python benchmarks/scale.py

Each size is read in a process of its own, smaller ones more often, since a second is noisier than a minute. Seconds a row
should stay within 15% of each other, peak memory within 10%.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import shutil
import subprocess
import sys
import tempfile
import time
from dataclasses import replace
from datetime import date
from pathlib import Path
from statistics import median
from typing import Any

from surroundings import machine

ROOT = Path(__file__).resolve().parent.parent
RESULTS = ROOT / "benchmarks" / "results" / "scale.json"
TOKENIZER = ROOT / "models" / "smollm2-135m-instruct"
SIZES = (1_000, 10_000, 100_000)
# How often a size is read in a repeat.
TURNS = {1_000: 6, 10_000: 2}
WARM_ROWS = 512
# glibc gives threads arenas of their own when they happen to meet: 60 MiB more or less from run to run.
ALLOCATOR = {"MALLOC_ARENA_MAX": "1"}
TIME_SPREAD, MEMORY_SPREAD = 1.15, 1.10
WORDS = ("the", "red", "old", "cow", "horse", "hammer", "sun", "eats", "sees", "grass", "soup", "house", "near", "no")


def write_model(directory: Path) -> None:
    """A random Llama of four small blocks: small, and yet not so small that starting up weighs on a thousand rows."""
    import torch
    from transformers import AutoTokenizer, LlamaConfig, LlamaForCausalLM

    tokenizer = AutoTokenizer.from_pretrained(TOKENIZER)
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=192,
        intermediate_size=512,
        num_hidden_layers=4,
        num_attention_heads=4,
        num_key_value_heads=4,
        tie_word_embeddings=True,
    )
    LlamaForCausalLM(config).save_pretrained(directory)
    tokenizer.save_pretrained(directory)


def read(model: str, rows: int, cache: str) -> dict[str, Any]:
    """Extract the rows' states; seconds, those of eight rows alone, and this process's peak resident memory."""
    import random

    from probekd.config import TeacherConfig
    from probekd.extraction import extract
    from probekd.states import States
    from probekd.tasks.base import Example, Task
    from probekd.teacher.load import load_teacher

    labels = ("animal", "tool", "food")
    draw = random.Random(0)
    examples = tuple(
        Example(id=f"r{i}", question=" ".join(draw.choices(WORDS, k=12)), options=labels) for i in range(rows)
    )
    task = Task(name="scale", kind="classification", labels=labels, splits={"unlabelled": examples})
    teacher = load_teacher(TeacherConfig(model=model, batch_tokens=4096))
    few, some = (replace(task, splits={"unlabelled": examples[:n]}) for n in (8, WARM_ROWS))

    def seconds(rows: Task, place: str) -> tuple[float, States]:
        began = time.perf_counter()
        states = extract(teacher, rows, depths=(1,), cache=Path(cache) / place)
        return time.perf_counter() - began, states

    # What is loaded once, and memory taken once, counts in no row's time; in caches of their own, since nothing is read of
    # what is there already.
    seconds(some, "warm")
    few_seconds, _ = seconds(few, "few")
    took, states = seconds(task, "all")
    return {
        "rows": rows,
        "seconds": took,
        "seconds_of_eight_rows": few_seconds,
        "peak_mib": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**10,
        "shards": len(states.stores[0].manifest["shards"]),
    }


def measure(sizes: list[int], repeats: int) -> dict[str, Any]:
    """Every size in turn, several times."""
    found: dict[int, list[dict[str, Any]]] = {size: [] for size in sizes}
    with tempfile.TemporaryDirectory() as place:
        root = Path(place)
        write_model(root / "model")
        for repeat in range(repeats):
            for size, turn in ((s, turn) for s in sizes for turn in range(TURNS.get(s, 1))):
                cache = root / f"cache-{size}-{repeat}-{turn}"
                command = [sys.executable, __file__, "--child", str(root / "model"), str(size), str(cache)]
                environment = {**os.environ, **ALLOCATOR}
                done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True, env=environment)
                found[size].append(json.loads(done.stdout.splitlines()[-1]))
                shutil.rmtree(cache)
    rows = [
        {
            "rows": size,
            "milliseconds_a_row": median(1000 * r["seconds"] / size for r in runs),
            "seconds_of_eight_rows": median(r["seconds_of_eight_rows"] for r in runs),
            "peak_mib": median(r["peak_mib"] for r in runs),
            "runs": runs,
        }
        for size, runs in found.items()
    ]
    # The smallest size is the one that starting up weighs on most; it is compared like the others.
    spread = {
        name: max(r[name] for r in rows) / min(r[name] for r in rows) for name in ("milliseconds_a_row", "peak_mib")
    }
    return {
        "sizes": rows,
        "spread": spread,
        "targets": {"milliseconds_a_row": TIME_SPREAD, "peak_mib": MEMORY_SPREAD},
        "met": {
            "milliseconds_a_row": spread["milliseconds_a_row"] <= TIME_SPREAD,
            "peak_mib": spread["peak_mib"] <= MEMORY_SPREAD,
        },
    }


def main() -> int:
    """Measure and write the result file; 1 when a target is missed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sizes", type=int, nargs="*", default=list(SIZES))
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--output", type=Path, default=RESULTS)
    parser.add_argument("--child", nargs=3, metavar=("MODEL", "ROWS", "CACHE"), help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.child:
        model, rows, cache = args.child
        print(json.dumps(read(model, int(rows), cache)))
        return 0
    result = {"date": date.today().isoformat(), "machine": machine(), **measure(args.sizes, args.repeats)}
    args.output.write_text(json.dumps(result, indent=1) + "\n")
    for row in result["sizes"]:
        print(f"{row['rows']:>8,} rows: {row['milliseconds_a_row']:.3f} ms a row, peak {row['peak_mib']:.0f} MiB")
    print(
        f"largest over smallest: time {result['spread']['milliseconds_a_row']:.2f}, memory {result['spread']['peak_mib']:.2f}"
    )
    return 0 if all(result["met"].values()) else 1


if __name__ == "__main__":
    sys.exit(main())
