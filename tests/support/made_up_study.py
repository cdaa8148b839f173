"""Results of a study that never ran: every method as good as it is told to be, with noise over seeds and rows."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from probekd.methods import RECIPES
from probekd.study.plan import READERS
from probekd.study.records import record
from probekd.study.results import Result

SKILL: Mapping[str, float] = {
    "labels": 0.6,
    "label-smoothing": 0.6,
    "logit-kd": 0.7,
    "calibrated-logit-kd": 0.9,
    "debiased-logit-kd": 0.85,
    "hidden-kd": 0.7,
    "probe-kd": 1.3,
    "probe-kd-in-sample": 1.2,
    "probe-kd-shuffled": 0.1,
    "self-train": 0.8,
    "blend-kd": 1.35,
    "teacher_output": 1.0,
    "probe": 1.6,
}


def made_up(
    tasks: Sequence[str] = ("arc_easy", "kinds"),
    budgets: Sequence[int] = (100, 300),
    seeds: Sequence[int] = (0, 1, 2),
    methods: Sequence[str] = tuple(RECIPES),
    *,
    pools: Sequence[str] = ("0", "all"),
    rows: int = 200,
    skill: Mapping[str, float] = SKILL,
    verdict: str = "probe-kd",
    lead: float = -0.1,
) -> list[Result]:
    """Results of every cell; ``lead`` is what the probe's log-loss out of fold is above the student's own."""
    found = []
    for t, task in enumerate(tasks):
        draw = np.random.default_rng(t)
        answers = draw.integers(4, size=rows)
        common = draw.normal(size=(rows, 4))  # test rows are hard or easy for everybody
        for budget in budgets:
            for seed in seeds:
                settings = {"task": task, "teacher": "teacher", "budget": budget, "seed": seed}
                for method in (*READERS, *methods):
                    learns = "never" if method in READERS else RECIPES[method].pool  # type: ignore[index]
                    some = ["0"] if learns == "never" else [p for p in pools if learns == "optional" or p != "0"]
                    for pool in some:
                        z = common + 0.7 * draw.normal(size=(rows, 4))
                        z += (skill[method] + 0.3 * (pool != "0")) * np.log(budget) / 4 * np.eye(4)[answers]
                        found.append(_result(settings, method, pool, z, answers, verdict, lead))
    return found


def _result(
    settings: Mapping[str, Any], method: str, pool: str, z: np.ndarray, answers: np.ndarray, verdict: str, lead: float
) -> Result:
    probs = np.exp(z) / np.exp(z).sum(1, keepdims=True)
    student = "" if method in READERS else "small static"
    where = {**settings, "student": student, "method": method, "pool": pool}
    more: dict[str, Any] = {"teacher_tokens": 1000, "steps": 0, "seconds": 1.5}
    if student:
        alpha = 1.0 if pool == "0" and where["seed"] else 0.5
        more |= {"chosen": {"alpha": alpha, "temperature": 2.0, "l2": 0.003 * (1 + where["seed"])}}
        more |= {"gate": {"verdict": verdict, "difference": lead, "versus": "student_alone"}, "pool_rows": 900}
        more |= {"target_accuracy": None if pool == "0" else 0.6}
    key = "-".join(map(str, where.values()))
    return Result.of(record(where, list(probs), answers.tolist(), **more, key=key))
