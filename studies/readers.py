"""Which reader reads best: tasks x label budgets x seeds, each cell a file, so that the study resumes.

    python studies/readers.py read  [TASK ...]    the teacher's states of every row (hours on a laptop; resumes)
    python studies/readers.py fit   [TASK ...]    probes and output readouts of every cell that is not there yet
    python studies/readers.py table               studies/results/readers.json from the cells, and a table
    python studies/readers.py shift [TASK ...]    studies/results/shift.json: are held-out rows as hard as training rows?

The benchmarks' files are found through the variable PROBEKD_DATA, states are kept under PROBEKD_CACHE.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from probekd.config import ProbeConfig
from probekd.errors import DataError
from probekd.extraction import extract
from probekd.files import read_json, write_json
from probekd.metrics import expected_calibration_error, log_losses, score
from probekd.probes.calibrate import fit_temperature
from probekd.probes.fit import CrossFitted
from probekd.probes.outputs import fit_outputs, raw_logits, readout_names
from probekd.progress import Silent
from probekd.targets import softmax
from probekd.tasks import load_task
from probekd.tasks.base import Example, Task, nested_order

ROOT = Path(__file__).resolve().parent.parent
TEACHER = ROOT / "models" / "smollm2-135m-instruct"
CELLS = Path(__file__).resolve().parent / "results" / "readers"
TASKS = ("wordnet_kinds", "banking77", "arc_easy", "wordnet_which", "arc_challenge", "mmlu", "aqua_rat")
# Four subjects that together have 300 rows to learn from: only two of the 57 have a hundred by themselves.
MMLU_SUBJECTS = ("high_school_psychology", "miscellaneous", "moral_scenarios", "professional_psychology")
BUDGETS = (100, 300, 1000)
# ARC-Easy's bar is stated for two hundred labels.
MORE_BUDGETS = {"arc_easy": (200,)}
SEEDS = (0, 1, 2)
# Training rows that are read; labels are drawn from them, and what is left is a pool (``studies/breadth.yaml`` shares it).
TRAINING_ROWS = 1500
# All of ARC's and nearly all of Banking77's: fifteen bins of a thousand rows say little about calibration. MMLU is dear.
HELD_OUT = 3000
MORE_HELD_OUT = {"mmlu": 1000}
# Every second depth: neighbours are alike, and the study has sixty cells.
CONFIG = ProbeConfig(depths=tuple(range(0, 31, 2)))
READERS: Mapping[str, Mapping[str, Any]] = {
    "chosen": {},
    "logistic": {"windows": (1,), "stack": False},
    "windows": {"stack": False},
}
# Other families, which are not tried by default, are fitted with one seed's labels.
FAMILIES_SEED = 0
FAMILIES_CONFIG = CONFIG.model_copy(update={"families": ("logistic", "ridge", "mass_mean")})
FAMILIES: Mapping[str, Mapping[str, Any]] = {
    "ridge": {"families": ("ridge",), "windows": (1,), "stack": False},
    "mass_mean": {"families": ("mass_mean",), "windows": (1,), "stack": False},
    "with_ridge": {"families": ("logistic", "ridge")},
}


def study_task(name: str) -> Task:
    """A task with at most 1500 training and 3000 held-out rows.

    ARC-Easy, all of whose test rows are read, keeps the file's order: its bar is stated for the first 600 with four options.
    """
    task = load_task(name, subjects=MMLU_SUBJECTS if name == "mmlu" else None)
    most = MORE_HELD_OUT.get(name, HELD_OUT)
    limit = {"test": most} if len(task.rows("test")) > most else None
    labelled = sum(e.answer is not None for e in task.rows("train"))
    task = task.budget(labels=min(labelled, TRAINING_ROWS), pool=0, limit=limit)
    return replace(task, splits={k: v for k, v in task.splits.items() if k in ("train", "test", "dev")})


def read(names: Sequence[str]) -> None:
    """Read the states of the named tasks."""
    for name in names:
        task = study_task(name)
        print(name, {k: len(v) for k, v in task.splits.items()}, flush=True)
        extract(TEACHER, task)


def fit(names: Sequence[str]) -> None:
    """Fit every cell of the named tasks that has no file yet."""
    for name in names:
        task = study_task(name)
        budgets = [n for n in sorted((*BUDGETS, *MORE_BUDGETS.get(name, ()))) if n <= len(task.rows("train"))]
        cells = [(n, seed) for n in budgets for seed in SEEDS if not _path(name, n, seed).is_file()]
        states = extract(TEACHER, task) if cells else None
        for labels, seed in cells:
            try:
                found = cell(states, task, labels, seed)
            except DataError as error:
                found = {"refused": str(error)}
            write_json(_path(name, labels, seed), {"task": name, "labels": labels, "seed": seed, **found})
            print(
                name,
                labels,
                seed,
                {k: round(found[k]["held_out"]["nll"], 4) for k in found if k in READERS},
                flush=True,
            )


def cell(states: Any, task: Task, labels: int, seed: int) -> dict[str, Any]:
    """Out-of-fold and held-out scores of every reader with one set of labels."""
    began = time.monotonic()
    train = nested_order(task.rows("train"), seed)[:labels]
    task = replace(task, splits={**task.splits, "train": tuple(train)})
    test = task.rows("test")
    ids, answers = [e.id for e in test], [e.answer for e in test if e.answer is not None]
    four = np.array([len(e.options) == 4 for e in test])
    first = four & (four.cumsum() <= 600)
    several = seed == FAMILIES_SEED
    config = FAMILIES_CONFIG if several else CONFIG
    fitted = CrossFitted.run(states, task, config=config, seed=seed, progress=Silent())
    found: dict[str, Any] = {}
    losses = {}
    for name, changes in {**READERS, **(FAMILIES if several else {})}.items():
        probe = fitted.choose(CONFIG.model_copy(update=dict(changes)))
        probs = [softmax(x) for x in probe.logits(states, ids)]
        losses[name] = log_losses(probs, answers)
        found[name] = {
            "out_of_fold": probe.scores,
            "held_out": score(probs, answers),
            "ece_if_calibrated": ece_if_calibrated(probs),
            "readers": probe.describe(),
            "words": dict(probe.words),
            "calibration": probe.calibration.kind,
        }
        if task.name == "arc_easy":
            hits = np.array([p.argmax() == a for p, a in zip(probs, answers, strict=True)])
            found[name]["first_600_of_four"] = float(hits[first].mean())
    by_id = {e.id: e for e in train}
    outputs = fit_outputs(states, [by_id[i] for i in fitted.ids], fitted.deals[0], kind=task.kind)
    found["output"] = {
        "readout": outputs.name,
        "out_of_fold": score(outputs.out_of_fold, fitted.trials[0].answers.tolist()),
        "held_out": score([softmax(x) for x in outputs.logits(states, ids)], answers),
    }
    difference = losses["chosen"] - losses["logistic"]
    found["chosen_minus_logistic"] = {
        "nll": float(difference.mean()),
        "se": float(difference.std() / len(difference) ** 0.5),
    }
    return {**found, "seconds": round(time.monotonic() - began, 1)}


def ece_if_calibrated(probs: Sequence[np.ndarray], draws: int = 200) -> float:
    """The ECE that chance gives these very confidences when every one of them is right as often as it says.

    Fifteen bins of some thousand rows are never exactly as full of hits as they should be: a figure for calibration means
    nothing without this one (Bröcker and Smith 2007, Weather and Forecasting 22:651).
    """
    confidence = np.array([p.max() for p in probs])
    generator = np.random.default_rng(0)
    return float(
        np.mean(
            [expected_calibration_error(confidence, generator.random(len(probs)) < confidence) for _ in range(draws)]
        )
    )


def table() -> None:
    """Gather the cells, and print the means over the seeds."""
    cells = [read_json(path) for path in sorted(CELLS.glob("*.json"))]
    groups: dict[tuple[str, int], list[Any]] = {}
    for one in cells:
        if "refused" not in one:
            groups.setdefault((one["task"], one["labels"]), []).append(one)
    rows = []
    for (name, labels), members in sorted(groups.items()):
        row: dict[str, Any] = {"task": name, "labels": labels, "seeds": len(members)}
        with_families = [m for m in members if m["seed"] == FAMILIES_SEED]
        # The defaults, once more over the very cells that the families have: means over other seeds do not compare.
        for who, among, cells_of in [
            *((w, w, members) for w in (*READERS, "output")),
            *((f"families.{w}", w, with_families) for w in (*READERS, *FAMILIES)),
        ]:
            for where in ("out_of_fold", "held_out"):
                for metric in ("accuracy", "nll", "ece"):
                    each = [m[among][where][metric] for m in cells_of]
                    row[f"{who}.{where}.{metric}"] = float(np.mean(each)) if each else None
        for who in READERS:
            if all("first_600_of_four" in m.get(who, {}) for m in members):
                row[f"{who}.first_600_of_four"] = [m[who]["first_600_of_four"] for m in members]
        differences = [m["chosen_minus_logistic"] for m in members]
        row["chosen.ece_if_calibrated"] = float(np.mean([m["chosen"]["ece_if_calibrated"] for m in members]))
        row["worse_by_more_than_se"] = sum(d["nll"] > d["se"] for d in differences)
        rows.append(row)
        held = "  ".join(
            f"{who} {row[f'{who}.held_out.accuracy']:.3f} {row[f'{who}.held_out.nll']:.3f} {row[f'{who}.held_out.ece']:.3f}"
            for who in ("chosen", "logistic", "output")
        )
        print(
            f"{name:<15}{labels:>5}  {held}  worse than logistic by more than a standard error: {row['worse_by_more_than_se']}"
        )
    refused = [one for one in cells if "refused" in one]
    write_json(CELLS.parent / "readers.json", {"rows": rows, "refused": refused})


def shift(names: Sequence[str]) -> None:
    """What the teacher's words, which learned from no label, are worth on training rows and on held-out ones.

    Where accuracy and best temperature differ by more than their errors, no calibration on training rows can be right
    for held-out ones.
    """
    found = []
    for name in names:
        task = study_task(name)
        if task.kind != "multiple_choice":
            continue
        states = extract(TEACHER, task)
        for readout in (n for n in readout_names(states) if n.startswith("option_likelihood")):
            row: dict[str, Any] = {"task": name, "readout": readout}
            for split in ("train", "test"):
                row[split] = worth([e for e in task.rows(split) if e.answer is not None], states, readout)
            found.append(row)
            print(row, flush=True)
    write_json(CELLS.parent / "shift.json", {"rows": found})


def worth(rows: Sequence[Example], states: Any, readout: str, draws: int = 100) -> dict[str, float]:
    """Accuracy, best temperature, and the bootstrap errors of both, of a readout's raw logits."""
    answers, counts = np.array([e.answer for e in rows]), [len(e.options) for e in rows]
    logits = raw_logits(states, readout, [e.id for e in rows], counts, max(counts))
    hits = logits.argmax(1) == answers
    generator = np.random.default_rng(0)
    drawn = [generator.integers(0, len(rows), len(rows)) for _ in range(draws)]
    return {
        "n": len(rows),
        "accuracy": float(hits.mean()),
        "accuracy_error": float(np.std([hits[i].mean() for i in drawn])),
        "temperature": float(fit_temperature(logits, answers)),
        "temperature_error": float(np.std([fit_temperature(logits[i], answers[i]) for i in drawn])),
    }


def _path(name: str, labels: int, seed: int) -> Path:
    return CELLS / f"{name}-{labels}-{seed}.json"


def main(arguments: Sequence[str]) -> None:
    """Do what the first argument says, for the tasks named after it (all when none is)."""
    what, names = (arguments[0] if arguments else ""), tuple(arguments[1:]) or TASKS
    if what == "read":
        read(names)
    elif what == "fit":
        CELLS.mkdir(parents=True, exist_ok=True)
        fit(names)
    elif what == "table":
        table()
    elif what == "shift":
        shift(names)
    else:
        sys.exit(__doc__)


if __name__ == "__main__":
    main(sys.argv[1:])
