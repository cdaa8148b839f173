"""What the steps of calibration bring outside: one temperature, a lapse, and what is taken for flattery.

    python studies/calibration.py        every cell that studies/results/calibration.json lacks, then means (resumes)

The chosen reader of ``studies/readers.py`` on the same states (``readers.py read``; PROBEKD_DATA and PROBEKD_CACHE as
there), held out, calibrated by

* ``temperature``: one temperature, fitted to the rows that chose.
* ``lapse``: as the package does it (a temperature and a lapse, or vector scaling), and nothing for flattery.
* ``luck 1.5``: the package, which softens by what nested predictions ask for over 1.5 times.
* ``luck 1``: softened by all that they ask for.
"""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path
from typing import Any
from unittest.mock import patch

import numpy as np
from readers import CONFIG, TEACHER, study_task

from probekd.extraction import extract
from probekd.files import read_json, write_json
from probekd.metrics import log_losses, score
from probekd.probes.calibrate import one_temperature
from probekd.probes.fit import CrossFitted
from probekd.probes.probe import Probe
from probekd.progress import Silent
from probekd.states import States
from probekd.targets import softmax
from probekd.tasks.base import Task, nested_order

RESULTS = Path(__file__).resolve().parent / "results" / "calibration.json"
TASKS = ("wordnet_kinds", "wordnet_which", "arc_easy", "arc_challenge", "mmlu", "aqua_rat", "banking77")
# Of Banking77 three hundred rows take many minutes a cell.
BUDGETS = {"banking77": (100,)}
SEEDS = (0, 1, 2)


def ways(fitted: CrossFitted) -> dict[str, Probe]:
    """The chosen reader, calibrated in every way."""
    usual = fitted.choose(CONFIG)
    with patch("probekd.probes.choose.LUCK", 1.0):
        all_of_it = fitted.choose(CONFIG)
    lapse = replace(usual, flattery=1.0)
    plain = replace(lapse, calibration=one_temperature(usual.uncalibrated, usual.scored_answers))
    return {"temperature": plain, "lapse": lapse, "luck 1.5": usual, "luck 1": all_of_it}


def cell(states: States, task: Task, labels: int, seed: int) -> dict[str, Any]:
    """Held-out scores of every way with one set of labels, and what it gains on ``temperature``, in nats."""
    train = nested_order(task.rows("train"), seed)[:labels]
    drawn = replace(task, splits={**task.splits, "train": tuple(train)})
    test = task.rows("test")
    ids, answers = [e.id for e in test], [e.answer for e in test if e.answer is not None]
    fitted = CrossFitted.run(states, drawn, config=CONFIG, seed=seed, progress=Silent())
    found: dict[str, Any] = {}
    plain = None
    for name, probe in ways(fitted).items():
        probs = [softmax(z) for z in probe.logits(states, ids)]
        losses = log_losses(probs, answers)
        plain = losses if plain is None else plain
        gain = plain - losses
        found[name] = {
            "held_out": score(probs, answers),
            "flattery": probe.flattery,
            "calibration": probe.calibration.kind,
            "gain": float(gain.mean()),
            "gain_se": float(gain.std() / len(gain) ** 0.5),
        }
    return found


def main() -> int:
    """Run what is missing, and print the means over tasks and seeds."""
    cells: list[dict[str, Any]] = read_json(RESULTS)["cells"] if RESULTS.is_file() else []
    done = {(c["task"], c["labels"], c["seed"]) for c in cells}
    for name in TASKS:
        missing = [(n, s) for n in BUDGETS.get(name, (100, 300)) for s in SEEDS if (name, n, s) not in done]
        if not missing:
            continue
        task = study_task(name)
        states = extract(TEACHER, task)
        for labels, seed in missing:
            row = {"task": name, "labels": labels, "seed": seed, "ways": cell(states, task, labels, seed)}
            cells.append(row)
            write_json(RESULTS, {"command": "python studies/calibration.py", "cells": cells})
            print(name, labels, seed, {way: round(w["gain"], 4) for way, w in row["ways"].items()}, flush=True)
    for way in cells[0]["ways"]:
        own = [c["ways"][way] for c in cells]
        nll, ece = (np.mean([w["held_out"][metric] for w in own]) for metric in ("nll", "ece"))
        surely = sum(w["gain"] > 2 * w["gain_se"] for w in own), sum(w["gain"] < -2 * w["gain_se"] for w in own)
        print(
            f"{way:12} nll {nll:.3f} ece {ece:.3f} surely better, worse than one temperature in {surely} of {len(own)}"
        )
    return 0


if __name__ == "__main__":
    sys.exit(main())
