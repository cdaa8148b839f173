"""States to time probes on: the spectrum of real ones, labels that a linear softmax planted, seeds that never change."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from safetensors.torch import save_file

from probekd.files import file_digest, replacing, write_json
from probekd.states import FORMAT, States, StateStore
from probekd.tasks.base import Example, Task

SEED = 0
CLASSES = 4
FOLDS = 5
LABELS = ("north", "east", "south", "west")
SHARD_BYTES = 64 * 2**20
# Eigenvalues of the covariance of SmolLM2-135M's standardised states, by rank.
RANKS, EIGENVALUES = (1, 10, 30, 100, 200), (60.0, 10.0, 3.0, 0.5, 0.1)
# Directions that know the answer, and how large its logits are.
KNOWING, SHARPNESS = 128, 2.5


def spectrum(d: int) -> np.ndarray:
    """Eigenvalues (d,), a power law between the measured ranks and on beyond the last."""
    ranks, values = np.log(RANKS), np.log(EIGENVALUES)
    rank = np.log(np.arange(1, d + 1))
    last = (values[-1] - values[-2]) / (ranks[-1] - ranks[-2])
    inside = np.interp(rank, ranks, values)
    return np.asarray(np.exp(np.where(rank > ranks[-1], values[-1] + last * (rank - ranks[-1]), inside)))


def mixing(d: int, directions: int, generator: np.random.Generator) -> np.ndarray:
    """(directions, d) float32: independent normal numbers times this have the spectrum's leading part, rotated."""
    rotation = np.linalg.qr(generator.standard_normal((d, directions), dtype=np.float32))[0]
    return np.asarray(np.sqrt(spectrum(d)[:directions, None]) * rotation.T, dtype=np.float32)


def answers_of(known: np.ndarray, generator: np.random.Generator) -> np.ndarray:
    """(n,) answers drawn from a linear softmax: of (n, m) over the classes, of (n, k, m) over a row's options."""
    outputs = CLASSES if known.ndim == 2 else 1
    plan = generator.standard_normal((known.shape[-1], outputs)) / known.shape[-1] ** 0.5
    logits = SHARPNESS * (known @ plan).reshape(len(known), -1)
    return np.asarray((logits + generator.gumbel(size=logits.shape)).argmax(1))


@dataclass(frozen=True, kw_only=True)
class Job:
    """What there is to fit: every depth, fold and strength.

    Attributes:
        states: For each depth (n, d), or (n, k, d) for the option scorer; float32.
        answers: (n,).
        folds: (n,).
    """

    states: tuple[np.ndarray, ...]
    answers: np.ndarray
    folds: np.ndarray

    @property
    def options(self) -> bool:
        """Whether a row holds one state for each option."""
        return self.states[0].ndim == 3

    @property
    def train(self) -> np.ndarray:
        """(FOLDS, n) bool: the rows that each fold's model learns from."""
        return np.stack([self.folds != f for f in range(FOLDS)])


def generate(n: int, d: int, depths: int, *, options: bool) -> Job:
    """States whose middle depths know the answers best; each depth has a rotation and a noise of its own."""
    generator = np.random.default_rng((SEED, n, d, depths, options))
    rows = (n, CLASSES) if options else (n,)
    known = generator.standard_normal((*rows, min(KNOWING, d)), dtype=np.float32)
    answers = answers_of(known, generator)
    states = []
    for depth in range(depths):
        z = generator.standard_normal((*rows, d), dtype=np.float32)
        if options:  # a row's options share their question
            z = (z + generator.standard_normal((n, 1, d), dtype=np.float32)) * np.float32(0.5**0.5)
        share = np.float32(0.15 + 0.7 * np.sin(np.pi * (depth + 1) / (depths + 1)))
        z[..., : known.shape[-1]] *= (1 - share) ** 0.5
        z[..., : known.shape[-1]] += share**0.5 * known
        states.append(z @ mixing(d, d, generator))
    return Job(states=tuple(states), answers=answers, folds=generator.permutation(n) % FOLDS)


def measured_spectrum(states: np.ndarray) -> dict[str, float]:
    """Eigenvalues of the standardised covariance at the ranks that the spectrum is given at."""
    x = states.reshape(-1, states.shape[-1]).astype(np.float64)
    values = np.linalg.svd((x - x.mean(0)) / x.std(0), compute_uv=False) ** 2 / len(x)
    return {str(rank): round(float(values[rank - 1]), 3) for rank in RANKS if rank <= len(values)}


def task_of(answers: np.ndarray) -> Task:
    """A classification task whose rows have these answers."""
    rows = (Example(id=f"r{i:06}", question=f"Row {i}?", options=LABELS, answer=int(a)) for i, a in enumerate(answers))
    return Task(name="generated", kind="classification", splits={"train": tuple(rows)}, labels=LABELS)


def write_store(
    directory: Path, task: Task, *, depths: int, d: int, dtype: str, block: Callable[[int, slice], np.ndarray]
) -> States:
    """Write a state store in the project's format, a shard at a time.

    Args:
        directory: Made here.
        task: Says the rows.
        depths: Depths 0 to this less one.
        d: Width.
        dtype: ``float32`` or ``bfloat16``.
        block: Gives the states (rows, d) of a depth's rows; called shard by shard.
    """
    examples = task.rows("train")
    kind = {"float32": torch.float32, "bfloat16": torch.bfloat16}[dtype]
    step = max(1, SHARD_BYTES // (depths * d * kind.itemsize))
    directory.mkdir(parents=True)
    shards = []
    for number, start in enumerate(range(0, len(examples), step)):
        rows = slice(start, min(start + step, len(examples)))
        values = torch.empty(depths, rows.stop - rows.start, d, dtype=kind)
        for depth in range(depths):
            values[depth] = torch.as_tensor(block(depth, rows))
        path = directory / f"shard-{number:05}.safetensors"
        with replacing(path) as temporary:
            save_file({"answer": values}, temporary)
        shards.append({"file": path.name, "rows": len(values[0]), "sha256": file_digest(path)})
    index = directory / "index.parquet"
    columns = {"id": [e.id for e in examples], "num_options": [len(e.options) for e in examples]}
    pq.write_table(pa.table(columns), index)
    write_json(
        directory / "manifest.json",
        {
            "format": FORMAT,
            "split": "train",
            "layout": "listed",
            "positions": ["answer"],
            "depths": list(range(depths)),
            "teacher": {
                "name": "generated",
                "fingerprint": "generated",
                "blocks": depths - 1,
                "width": d,
                "dtype": dtype,
            },
            "rows": len(examples),
            "max_options": CLASSES,
            "outputs": [],
            "shards": shards,
            "index": {"file": index.name, "sha256": file_digest(index)},
        },
    )
    return States((StateStore.open(directory),))
