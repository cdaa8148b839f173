"""Synthetic run directories: every file that the report reads, with numbers that agree with one another."""

from __future__ import annotations

import csv
import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from probekd.config import RunConfig, dump_config
from probekd.targets import SoftTargets, softmax
from probekd.tasks.base import Example

LABELS = (
    "card arrival",
    "card lost or stolen",
    "cash withdrawal charge",
    "exchange rate",
    "failed transfer",
    "pending top-up",
    "refund not showing up",
    "verify my identity",
    "why was I charged an extra fee on my statement",
    "change PIN",
)
HOSTILE = (
    "<script>document.title='pwned'</script>",
    '"><img src=x onerror="document.title=\'pwned\'">',
    "{{ 7*7 }} {% raw %} {# gone #}",
    "w" * 3000,
    "مرحبا بالعالم: ما هي عاصمة \u202eمصر\u202c؟ 🦊🏳️\u200d🌈",
    "</title></style><style>body{display:none}</style>",
)
STRENGTH = {"teacher_output": 1.1, "probe": 2.6, "student": 2.3}
DEPTHS = 24


@dataclass(frozen=True)
class Run:
    """A run directory and the task's rows by id."""

    directory: Path
    examples: dict[str, Example]

    def edit(self, name: str, change: Callable[[Any], None]) -> None:
        """Change a JSON file in place."""
        path = self.directory / name
        value = json.loads(path.read_text())
        change(value)
        path.write_text(json.dumps(value))


def question(i: int) -> str:
    if i < len(HOSTILE):
        return HOSTILE[i]
    body = (
        "Which layer of the atmosphere lies above the troposphere and holds most of the ozone that shields the surface?"
    )
    return f"Question {i}. " + (
        body if i % 3 else "My card has not arrived yet and I ordered it two weeks ago. " * (1 + i % 4)
    )


def make_examples(kind: str, n: int, rng: np.random.Generator) -> list[Example]:
    if kind == "classification":
        return [
            Example(id=f"t{i}", question=question(i), options=LABELS, answer=int(rng.integers(len(LABELS))))
            for i in range(n)
        ]
    rows = []
    for i in range(n):
        count = 3 + i % 3
        options = [
            f"the {name} of row {i}"
            for name in ("mesosphere", "stratosphere", "exosphere", "tropopause", "ionosphere")[:count]
        ]
        if i < len(HOSTILE):
            options[1] = HOSTILE[(i + 1) % len(HOSTILE)]
        subject = ("astronomy", "college biology", "<b>law</b>")[i % 3]
        rows.append(
            Example(
                id=f"q{i}",
                question=question(i),
                options=tuple(options),
                answer=int(rng.integers(count)),
                subject=subject,
            )
        )
    return rows


def predict(rows: list[Example], strength: float, rng: np.random.Generator) -> list[np.ndarray]:
    """Noisy logits with the gold option raised by ``strength``."""
    made = []
    for row in rows:
        logits = rng.normal(size=len(row.options)) * 1.3
        logits[row.answer or 0] += strength
        made.append(softmax(logits))
    return made


def show_hostile(rows: list[Example], who: str, probs: list[np.ndarray]) -> None:
    """Make the hostile rows the clearest cases of "said wrong, read right", so that the page must show them."""
    for i, row in enumerate(rows[: len(HOSTILE)]):
        assert row.answer is not None
        gold = row.answer if who != "teacher_output" else (row.answer + 1) % len(row.options)
        probs[i] = softmax(np.where(np.arange(len(row.options)) == gold, 9.0, 0.0))


def score(rows: list[Example], probs: list[np.ndarray]) -> dict[str, Any]:
    """The metrics of design.md; Wilson interval and all."""
    gold = np.array([row.answer for row in rows])
    top = np.array([int(p.argmax()) for p in probs])
    confidence = np.array([p.max() for p in probs])
    right = (top == gold).astype(float)
    bins = np.minimum((confidence * 15).astype(int), 14)
    n, p, z = len(rows), float(right.mean()), 1.96
    centre = (p + z * z / (2 * n)) / (1 + z * z / n)
    half = z * np.sqrt(p * (1 - p) / n + z * z / (4 * n * n)) / (1 + z * z / n)
    hits = [
        (2 * ((top == c) & (gold == c)).sum()) / ((top == c).sum() + (gold == c).sum()) for c in set(gold) | set(top)
    ]
    return {
        "accuracy": p,
        "accuracy_ci": [centre - half, centre + half],
        "nll": float(np.mean([-np.log(max(q[g], 1e-12)) for q, g in zip(probs, gold, strict=True)])),
        "brier": float(np.mean([((q - np.eye(len(q))[g]) ** 2).sum() for q, g in zip(probs, gold, strict=True)])),
        "ece": float(sum(abs((right - confidence)[bins == b].sum()) for b in range(15)) / n),
        "macro_f1": float(np.mean(hits)),
        "n": n,
    }


def comparison(split: str, metrics: dict[str, Any], a: str, b: str, metric: str) -> dict[str, Any]:
    difference = metrics[a][metric] - metrics[b][metric]
    half = 1.5 / np.sqrt(metrics[a]["n"])
    return {
        "split": split,
        "a": a,
        "b": b,
        "metric": metric,
        "difference": difference,
        "ci": [difference - half, difference + half],
        "p_value": 0.0002 if abs(difference) > half else 0.31,
        "n": metrics[a]["n"],
    }


def depth_rows(kind: str) -> list[dict[str, Any]]:
    places = [("listed", "answer", "answer"), ("listed", "option_end", "option"), ("branched", "option_mean", "option")]
    rows = []
    for place, (layout, position, probe) in enumerate(places[: 1 if kind == "classification" else 3]):
        for depth in range(DEPTHS + 1):
            rise = 1 / (1 + np.exp(-(depth - 9 - 2 * place) / 2.5)) - 0.012 * max(0, depth - 17)
            for l2 in (0.03, 0.3):
                accuracy = (
                    0.22 + (0.52 - 0.06 * place) * rise - 0.02 * (l2 == 0.03) + 0.01 * np.sin(depth * 3.1 + place)
                )
                rows.append(
                    {
                        "position": position,
                        "depth": depth,
                        "kind": probe,
                        "l2": l2,
                        "accuracy": round(accuracy, 5),
                        "nll": round(2.4 - 2.1 * accuracy, 5),
                        "ece": 0.031,
                        "layout": layout,
                    }
                )
    return rows


def probe_record(kind: str, depths: list[dict[str, Any]]) -> dict[str, Any]:
    best = min(depths, key=lambda row: row["nll"])
    listed = {"readout": "label_token", "accuracy": 0.48, "nll": 1.52, "ece": 0.05}
    return {
        "format": 1,
        "task_kind": kind,
        "reader": {
            "layout": best["layout"],
            "position": best["position"],
            "depth": best["depth"],
            "l2": best["l2"],
            "temperature": 1.13,
        },
        "depths": DEPTHS,
        "folds": 5,
        "labelled": 300,
        "scored": 300,
        "out_of_fold": {
            "probe": {"accuracy": best["accuracy"] - 0.012, "nll": best["nll"] + 0.03, "ece": 0.028},
            "teacher_output": {**listed, "readout": "label_token"},
            "student_alone": {"accuracy": 0.41, "nll": 1.71, "ece": 0.04},
        },
        "output_readouts": [
            {**listed, "calibrated": True},
            {"readout": "label_token", "calibrated": False, "accuracy": 0.46, "nll": 2.9, "ece": 0.31},
            {"readout": "option_likelihood_byte", "calibrated": True, "accuracy": 0.37, "nll": 1.78, "ece": 0.06},
        ],
        "optimism": {
            "chosen_nll": best["nll"],
            "outside_nll": best["nll"] + 0.03,
            "chosen_accuracy": best["accuracy"],
            "outside_accuracy": best["accuracy"] - 0.012,
        },
        "controls": {
            "prior": {"accuracy": 0.11, "nll": 2.3, "ece": 0.01},
            "depth_0": {"accuracy": 0.24, "nll": 2.05, "ece": 0.03},
            "shuffled_labels": {"accuracy": 0.1, "nll": 2.31, "ece": 0.02},
        },
    }


def run_record() -> dict[str, Any]:
    return {
        "probekd": "0.1.0",
        "versions": {"python": "3.11.9", "torch": "2.13.0", "transformers": "5.23.0"},
        "seed": 0,
        "git_commit": "3f2a9c1",
        "notes": [
            "12 training rows whose question recurs in test were dropped.",
            "<i>3</i> prompts were longer than the context.",
        ],
        "stages": {
            "extract": {"status": "done", "seconds": 412.7, "tokens": 1_284_551, "bytes": 734_003_200, "rows": 1500},
            "probe": {"status": "done", "seconds": 38.2, "tokens": None, "bytes": 1_204_224},
            "train": {"status": "skipped", "seconds": 4021.0, "tokens": 3_402_112, "bytes": 91_000_000, "cut_rows": 3},
        },
    }


def write_run(directory: Path, kind: str, n: int = 400, seed: int = 0) -> Run:
    """Write a run directory of ``n`` test rows and a quarter as many of validation."""
    rng = np.random.default_rng(seed)
    rows = make_examples(kind, n + n // 4, rng)
    splits = {"test": rows[:n], "validation": rows[n:]}
    metrics: dict[str, Any] = {}
    table: list[dict[str, Any]] = []
    for split in ("validation", "test"):
        metrics[split] = {}
        for who, strength in {**STRENGTH, "student:labels": 1.6, "student:calibrated-logit-kd": 1.2}.items():
            probs = predict(splits[split], strength, rng)
            if split == "test":
                show_hostile(rows, who, probs)
            metrics[split][who] = score(splits[split], probs)
            if who in STRENGTH:
                table += [
                    {"id": e.id, "split": split, "who": who, "probs": p.tolist(), "answer": e.answer}
                    for e, p in zip(splits[split], probs, strict=True)
                ]
    metrics["comparisons"] = [
        comparison(split, metrics[split], a, b, metric)
        for split in ("validation", "test")
        for a, b in (
            ("probe", "teacher_output"),
            ("student", "student:labels"),
            ("student", "student:calibrated-logit-kd"),
        )
        for metric in ("accuracy", "nll")
    ]
    metrics["gate"] = {
        "verdict": "probe-kd",
        "metric": "nll",
        "versus": "teacher_output",
        "difference": -0.61,
        "ci": [-0.72, -0.5],
        "accuracy_difference": 0.231,
        "accuracy_ci": [0.17, 0.292],
        "reason": "the probe's log-loss is below that of label_token (calibrated) and the interval excludes zero",
    }
    depths = depth_rows(kind)
    (directory / "probes").mkdir(parents=True)
    config = RunConfig.model_validate(
        {
            "name": f"{kind}-demo",
            "task": "tasks/<demo>.yaml",
            "teacher": "Qwen/Qwen2.5-1.5B-Instruct",
            "student": "MiniLM-L6",
        }
    )
    (directory / "config.yaml").write_text(dump_config(config), encoding="utf-8")
    (directory / "metrics.json").write_text(json.dumps(metrics))
    (directory / "run.json").write_text(json.dumps(run_record()))
    (directory / "probes" / "probe.json").write_text(json.dumps(probe_record(kind, depths)))
    with (directory / "probes" / "depths.csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, list(depths[0]))
        writer.writeheader()
        writer.writerows(depths)
    pq.write_table(pa.Table.from_pylist(table), directory / "predictions.parquet")
    sources = ("oof",) * 300 + ("pooled",) * 1200
    SoftTargets(
        ids=tuple(f"u{i}" for i in range(1500)),
        splits=("train",) * 300 + ("unlabelled",) * 1200,
        logits=(np.array([0.0, 1.0]),) * 1500,
        sources=sources,
        folds=tuple(i % 5 for i in range(300)) + (-1,) * 1200,
    ).save(directory / "targets.parquet")
    return Run(directory, {row.id: row for row in rows})


@pytest.fixture
def new_run(tmp_path: Path) -> Callable[..., Run]:
    """``new_run(kind, n)``: a fresh run directory."""
    made = iter(range(100))
    return lambda kind="classification", n=400: write_run(tmp_path / f"run{next(made)}", kind, n)
