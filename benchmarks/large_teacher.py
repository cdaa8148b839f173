"""A teacher of three billion parameters, read a block at a time: peak memory, and time against the same in memory.

    python benchmarks/large_teacher.py

A randomly initialised Llama in bfloat16 is written block by block (about 6 GB in a temporary directory), and rows are
read with ``teacher.memory: streamed`` in a process of their own. A sibling of a few blocks that fits both ways is read
both ways, for equality and for the ratio of times.
"""

from __future__ import annotations

import argparse
import json
import resource
import subprocess
import sys
import tempfile
import time
from datetime import date
from pathlib import Path
from statistics import median
from typing import Any

from surroundings import machine

ROOT = Path(__file__).resolve().parent.parent
RESULTS = ROOT / "benchmarks" / "results" / "large_teacher.json"
TOKENIZER = ROOT / "models" / "smollm2-135m-instruct"
WIDTH, INNER, HEADS, KEY_HEADS = 3072, 8192, 24, 8
BLOCKS, SIBLING_BLOCKS = 28, 4
LIMIT_GIB, RATIO = 2.0, 1.3


def write_model(directory: Path, blocks: int, *, width: int = WIDTH, inner: int = INNER) -> int:
    """Write a random Llama, one file a block, without ever holding all of it; returns its number of parameters."""
    import torch
    from safetensors.torch import save_file
    from transformers import AutoTokenizer, LlamaConfig

    tokenizer = AutoTokenizer.from_pretrained(TOKENIZER)
    tokenizer.save_pretrained(directory)
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=width,
        intermediate_size=inner,
        num_hidden_layers=blocks,
        num_attention_heads=HEADS,
        num_key_value_heads=KEY_HEADS,
        tie_word_embeddings=True,
        architectures=["LlamaForCausalLM"],
        dtype="bfloat16",
    )
    config.save_pretrained(directory)
    torch.manual_seed(0)
    keys = width // HEADS * KEY_HEADS

    def random(*shape: int) -> torch.Tensor:
        return torch.empty(shape, dtype=torch.bfloat16).normal_(std=0.02)

    def ones() -> torch.Tensor:
        return torch.ones(width, dtype=torch.bfloat16)

    places: dict[str, str] = {}
    total = 0

    def keep(name: str, tensors: dict[str, torch.Tensor]) -> None:
        nonlocal total
        save_file(tensors, directory / name, metadata={"format": "pt"})
        places.update(dict.fromkeys(tensors, name))
        total += sum(t.numel() for t in tensors.values())

    keep("ends.safetensors", {"model.embed_tokens.weight": random(len(tokenizer), width), "model.norm.weight": ones()})
    for number in range(blocks):
        own = {
            "self_attn.q_proj": random(width, width),
            "self_attn.k_proj": random(keys, width),
            "self_attn.v_proj": random(keys, width),
            "self_attn.o_proj": random(width, width),
            "mlp.gate_proj": random(inner, width),
            "mlp.up_proj": random(inner, width),
            "mlp.down_proj": random(width, inner),
            "input_layernorm": ones(),
            "post_attention_layernorm": ones(),
        }
        keep(f"block-{number:03}.safetensors", {f"model.layers.{number}.{name}.weight": w for name, w in own.items()})
    index = {"metadata": {"total_size": 2 * total}, "weight_map": places}
    (directory / "model.safetensors.index.json").write_text(json.dumps(index))
    return total


def read(model: str, memory: str, rows: int, cache: str) -> dict[str, Any]:
    """Read rows; seconds of the pass, and this process's peak resident memory, mapped files included."""
    from probekd.config import TeacherConfig
    from probekd.extraction import extract
    from probekd.tasks.base import Example, Task
    from probekd.teacher.load import load_teacher

    examples = tuple(
        Example(id=f"r{i}", question=f"Number {i} of a list of things", options=("even", "odd"), answer=i % 2)
        for i in range(rows)
    )
    task = Task(name="large", kind="classification", labels=("even", "odd"), splits={"train": examples})
    teacher = load_teacher(TeacherConfig(model=model, dtype="bfloat16", memory=memory, batch_tokens=2048))  # type: ignore[arg-type]
    loaded = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    began = time.perf_counter()
    states = extract(teacher, task, cache=Path(cache))
    seconds = time.perf_counter() - began
    manifest = states.stores[0].manifest
    return {
        "seconds": seconds,
        "pass_seconds": manifest["seconds"],
        "tokens": manifest["tokens"],
        "pass": dict(manifest["pass"]),
        "peak_gib": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20,
        "loaded_gib": loaded / 2**20,
        "store": str(states.stores[0].directory),
    }


def child(*arguments: object) -> dict[str, Any]:
    """``read`` in a process of its own."""
    command = [sys.executable, __file__, "--child", *map(str, arguments)]
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    return dict(json.loads(done.stdout.splitlines()[-1]))


def relative_difference(a: str, b: str) -> float:
    """Largest difference of the states of two stores, relative to the largest state, over the depths."""
    import numpy as np

    from probekd.states import StateStore

    one, other = (StateStore.open(Path(path)) for path in (a, b))
    rows = range(len(one.index["id"]))
    worst = 0.0
    for depth in one.depths:
        x, y = (s.read("answer", depth, rows) for s in (one, other))
        worst = max(worst, float(np.abs(x - y).max() / np.abs(y).max()))
    return worst


def measure(rows: int, sibling_rows: int, repeats: int) -> dict[str, Any]:
    """Sibling both ways, alternately; then the large model."""
    with tempfile.TemporaryDirectory() as place:
        root = Path(place)
        write_model(root / "sibling", SIBLING_BLOCKS)
        runs: dict[str, list[dict[str, Any]]] = {"whole": [], "streamed": []}
        for repeat in range(repeats):
            for memory, found in runs.items():
                found.append(child(root / "sibling", memory, sibling_rows, root / f"cache-{memory}-{repeat}"))
        ratio = [s["pass_seconds"] / w["pass_seconds"] for s, w in zip(runs["streamed"], runs["whole"], strict=True)]
        difference = relative_difference(runs["streamed"][0]["store"], runs["whole"][0]["store"])
        parameters = write_model(root / "large", BLOCKS)
        large = child(root / "large", "streamed", rows, root / "cache")
    for one in (*runs["whole"], *runs["streamed"], large):
        del one["store"]
    return {
        "sibling": {
            "blocks": SIBLING_BLOCKS,
            **runs,
            "ratio": ratio,
            "median_ratio": median(ratio),
            "largest_relative_difference": difference,
        },
        "large": {"blocks": BLOCKS, "parameters": parameters, **large},
        "targets": {"peak_gib": LIMIT_GIB, "ratio": RATIO},
        "met": {"peak_gib": large["peak_gib"] < LIMIT_GIB, "ratio": median(ratio) <= RATIO},
    }


def main() -> int:
    """Measure and write the result file; 1 when a target is missed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=16)
    parser.add_argument("--sibling-rows", type=int, default=16)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--output", type=Path, default=RESULTS)
    parser.add_argument("--child", nargs=4, metavar=("MODEL", "MEMORY", "ROWS", "CACHE"), help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.child:
        model, memory, rows, cache = args.child
        print(json.dumps(read(model, memory, int(rows), cache)))
        return 0
    result = {
        "date": date.today().isoformat(),
        "machine": machine(),
        **measure(args.rows, args.sibling_rows, args.repeats),
    }
    args.output.write_text(json.dumps(result, indent=1) + "\n")
    large, sibling = result["large"], result["sibling"]
    print(
        f"{large['parameters'] / 1e9:.2f} billion parameters: peak {large['peak_gib']:.2f} GiB, {large['tokens']} tokens in "
        f"{large['pass_seconds']:.0f} s; sibling: {sibling['median_ratio']:.2f} times the time in memory, states differ by "
        f"{sibling['largest_relative_difference']:.1e}"
    )
    return 0 if all(result["met"].values()) else 1


if __name__ == "__main__":
    sys.exit(main())
