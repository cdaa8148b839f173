"""Ideas for few labels, beside the plain logistic probe on the same states: what does each bring outside?

    python studies/ideas.py        every cell that studies/results/ideas.json lacks, then the table (resumes)

They are tried here, by a plain solver, and go into the package when they win. The states are those of
``studies/readers.py read``; PROBEKD_DATA and PROBEKD_CACHE as there. At a fixed layout, position and middle depth:

* ``logistic``: cross-entropy and l2, as the package does it.
* ``mean difference``: the l2 holds weights near the best multiple of the mass-mean direction, and not near zero.
* ``pseudo-labels``: the unlabelled pool joins, with the answers that the logistic probe of the same fold gives it,
  weighted by its confidence.
* ``bagging``: three ways of dealing the folds, logits averaged.
* ``five depths``: logits of five neighbouring depths averaged.
* ``tied depths``: the same, with weights of neighbouring depths held near each other.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from readers import TEACHER, study_task
from torch import Tensor

from probekd.config import Layout, Position
from probekd.extraction import extract
from probekd.files import read_json, write_json
from probekd.metrics import score
from probekd.probes.calibrate import fit_temperature, gold_losses
from probekd.probes.estimator import softmax_rows
from probekd.probes.folds import assign_folds
from probekd.states import States
from probekd.tasks.base import Task, nested_order

RESULTS = Path(__file__).resolve().parent / "results" / "ideas.json"
# Where the probes of these tasks read best, the middle depth third.
PLACES: dict[str, tuple[Layout, Position, tuple[int, ...]]] = {
    "arc_easy": ("branched", "option_mean", (12, 14, 16, 18, 20)),
    "arc_challenge": ("branched", "option_mean", (12, 14, 16, 18, 20)),
    "wordnet_kinds": ("listed", "answer", (14, 16, 18, 20, 22)),
}
BUDGETS, SEEDS, FOLDS = (100, 300), (0, 1, 2), 5
STRENGTHS = (0.1, 0.3, 1.0, 3.0, 10.0, 30.0)
TIES = (1.0, 10.0)
STEPS = 60


@dataclass(frozen=True, kw_only=True)
class Rows:
    """States (depths, n, d) or (depths, n, k, d), and which options (n, K) there are."""

    x: Tensor
    present: Tensor

    def only(self, rows: Tensor) -> Rows:
        """Some of the rows."""
        return Rows(x=self.x[:, rows], present=self.present[rows])

    def at(self, depths: slice) -> Rows:
        """Some of the depths."""
        return Rows(x=self.x[depths], present=self.present)

    def logits(self, w: Tensor) -> Tensor:
        """(depths, n, K) from w (depths, d + 1, outputs), the last row of which is the intercept."""
        said = torch.einsum("Dn...d,Ddo->Dn...o", self.x, w[:, :-1])
        said = said[..., 0] if self.x.dim() == 4 else said + w[:, None, -1]
        return said.masked_fill(~self.present, -torch.inf)


def cross_entropy(logits: Tensor, gold: Tensor, weights: Tensor | None = None) -> Tensor:
    """Mean over rows, summed over depths."""
    losses = -torch.log_softmax(logits, -1).gather(-1, gold.expand(len(logits), -1)[..., None])[..., 0]
    return losses.mean(1).sum() if weights is None else (losses * weights).sum(1).sum() / weights.sum()


def minimise(size: tuple[int, ...], objective: Callable[[Tensor], Tensor]) -> Tensor:
    """Weights that minimise a smooth objective."""
    w = torch.zeros(size, requires_grad=True)
    solver = torch.optim.LBFGS([w], max_iter=STEPS, history_size=20, line_search_fn="strong_wolfe")

    def closure() -> Tensor:
        solver.zero_grad()
        loss = objective(w)
        loss.backward()  # type: ignore[no-untyped-call]
        return loss

    solver.step(closure)  # type: ignore[no-untyped-call]
    return w.detach()


@dataclass(frozen=True, kw_only=True)
class Problem:
    """Training rows of one fold, the pool, and the size of the weights."""

    rows: Rows
    gold: Tensor
    pool: Rows

    @property
    def size(self) -> tuple[int, int, int]:
        """Of the weights with their intercepts: depths, d + 1, outputs."""
        depths, d = len(self.rows.x), self.rows.x.shape[-1]
        return depths, d + 1, 1 if self.rows.x.dim() == 4 else self.rows.present.shape[1]


def logistic(p: Problem, l2: float) -> Tensor:
    """Each depth by itself."""
    return minimise(p.size, lambda w: cross_entropy(p.rows.logits(w), p.gold) + 0.5 * l2 * w[:, :-1].square().sum())


def tied(ties: float) -> Callable[[Problem, float], Tensor]:
    """The weights of neighbouring depths held near each other."""

    def fit(p: Problem, l2: float) -> Tensor:
        def objective(w: Tensor) -> Tensor:
            held = l2 * w[:, :-1].square().sum() + ties * l2 * (w[1:, :-1] - w[:-1, :-1]).square().sum()
            return cross_entropy(p.rows.logits(w), p.gold) + 0.5 * held

        return minimise(p.size, objective)

    return fit


def mean_difference(p: Problem, l2: float) -> Tensor:
    """Weights near the best multiple of the mass-mean direction."""
    depths, width, outputs = p.size
    direction = torch.zeros(depths, width - 1, outputs)
    at = torch.arange(len(p.gold))
    for depth, x in enumerate(p.rows.x):
        if x.dim() == 3:
            there = p.rows.present[..., None]
            direction[depth, :, 0] = (x[at, p.gold] - (x * there).sum(1) / there.sum(1)).mean(0)
        else:
            for k in range(outputs):
                own = x[p.gold == k]
                direction[depth, :, k] = own.mean(0) if len(own) else 0.0
    direction = direction / direction.norm()

    def shifted(packed: Tensor) -> Tensor:
        # The first number past the weights is the multiple: no l2 holds it.
        w = packed[:depths]
        return torch.cat([w[:, :-1] + packed[depths, 0, 0] * direction, w[:, -1:]], 1)

    def objective(packed: Tensor) -> Tensor:
        held = 0.5 * l2 * packed[:depths, :-1].square().sum()
        return cross_entropy(p.rows.logits(shifted(packed)), p.gold) + held

    return shifted(minimise((depths + 1, width, outputs), objective))


def pseudo_labels(p: Problem, l2: float) -> Tensor:
    """The pool joins with what the logistic probe says of it."""
    said = torch.softmax(p.pool.logits(logistic(p, l2))[0], -1).max(-1)

    def objective(w: Tensor) -> Tensor:
        gold, pool = cross_entropy(p.rows.logits(w), p.gold), cross_entropy(p.pool.logits(w), said.indices, said.values)
        return gold + pool + 0.5 * l2 * w[:, :-1].square().sum()

    return minimise(p.size, objective)


@dataclass(frozen=True, kw_only=True)
class Cell:
    """One task, so many labels, one seed."""

    labelled: Rows
    pool: Rows
    test: Rows
    answers: np.ndarray
    test_answers: np.ndarray
    deals: tuple[np.ndarray, ...]

    def at(self, depths: slice) -> Cell:
        """The cell at some of the depths."""
        return replace(self, labelled=self.labelled.at(depths), pool=self.pool.at(depths), test=self.test.at(depths))

    def once(
        self, fit: Callable[[Problem, float], Tensor], l2: float, folds: np.ndarray
    ) -> tuple[np.ndarray, np.ndarray]:
        """Logits out of fold (n, K) and of test rows (m, K), depths and fold models averaged."""
        own = np.empty(self.labelled.present.shape)
        test = []
        for f in range(FOLDS):
            train = torch.as_tensor(folds != f)
            problem = Problem(rows=self.labelled.only(train), gold=torch.as_tensor(self.answers)[train], pool=self.pool)
            w = fit(problem, l2)
            own[folds == f] = self.labelled.only(~train).logits(w).mean(0).numpy()
            test.append(self.test.logits(w).mean(0))
        return own, torch.stack(test).mean(0).double().numpy()

    def judge(self, fits: Sequence[Callable[[Problem, float], Tensor]], deals: int = 1) -> dict[str, Any]:
        """Scores of the strength (and variant) with the lowest log-loss out of fold."""
        tried = []
        for fit in fits:
            for l2 in STRENGTHS:
                each = [self.once(fit, l2, folds) for folds in self.deals[:deals]]
                own, test = (np.mean(said, axis=0) for said in zip(*each, strict=True))
                temperature = float(fit_temperature(own, self.answers))
                loss = float(gold_losses(own / temperature, self.answers).mean())
                tried.append((loss, l2, own / temperature, test / temperature))
        _, l2, own, test = min(tried, key=lambda t: t[0])
        both = ((own, self.answers), (test, self.test_answers))
        inside, outside = (dict(score(list(softmax_rows(z)), y.tolist())) for z, y in both)
        return {"l2": l2, "out_of_fold": inside, "held_out": outside, "losses": gold_losses(test, self.test_answers)}


IDEAS: dict[str, Callable[[Cell], dict[str, Any]]] = {
    "logistic": lambda c: c.at(slice(2, 3)).judge([logistic]),
    "mean difference": lambda c: c.at(slice(2, 3)).judge([mean_difference]),
    "pseudo-labels": lambda c: c.at(slice(2, 3)).judge([pseudo_labels]),
    "bagging": lambda c: c.at(slice(2, 3)).judge([logistic], deals=3),
    "five depths": lambda c: c.judge([logistic]),
    "tied depths": lambda c: c.judge([tied(t) for t in TIES]),
}


def cells(task: Task, states: States) -> Iterator[tuple[int, int, Cell]]:
    """Every cell of a task; the train rows that are not labelled are the pool."""
    layout, position, depths = PLACES[task.name]
    test = task.rows("test")
    for labels in BUDGETS:
        for seed in SEEDS:
            order = nested_order(task.rows("train"), seed)
            groups = (order[:labels], order[labels:], test)
            width = max(len(e.options) for rows in groups for e in rows)
            made, centre, spread = [], None, None
            for rows in groups:
                ids = [e.id for e in rows]
                x = torch.stack([torch.as_tensor(states.read(layout, position, d, ids)) for d in depths])
                present = torch.as_tensor([[k < len(e.options) for k in range(width)] for e in rows])
                if x.dim() == 4:
                    x = torch.nn.functional.pad(x, (0, 0, 0, width - x.shape[2]))
                if centre is None:
                    seen = x[:, present] if x.dim() == 4 else x
                    centre, spread = seen.mean(1), seen.std(1).clamp_min(1e-6)
                shape = (len(depths), *[1] * (x.dim() - 2), x.shape[-1])
                made.append(Rows(x=(x - centre.view(shape)) / spread.view(shape), present=present))  # type: ignore[union-attr]
            deals = tuple(assign_folds(order[:labels], task.kind, folds=FOLDS, seed=seed, repeat=r) for r in range(3))
            answers, test_answers = (np.array([e.answer for e in rows]) for rows in (groups[0], test))
            labelled, pool, held = made
            yield (
                labels,
                seed,
                Cell(labelled=labelled, pool=pool, test=held, answers=answers, test_answers=test_answers, deals=deals),
            )


def main() -> int:
    """Run what is missing, and print the means over tasks and seeds."""
    found: list[dict[str, Any]] = read_json(RESULTS)["cells"] if RESULTS.is_file() else []
    done = {(c["task"], c["labels"], c["seed"]) for c in found}
    for name in PLACES:
        if all((name, n, s) in done for n in BUDGETS for s in SEEDS):
            continue
        task = study_task(name)
        for labels, seed, cell in cells(task, extract(TEACHER, task)):
            if (name, labels, seed) in done:
                continue
            row: dict[str, Any] = {"task": name, "labels": labels, "seed": seed}
            plain = None
            for idea, run in IDEAS.items():
                row[idea] = run(cell)
                losses = row[idea].pop("losses")
                plain = losses if plain is None else plain
                gain = plain - losses
                row[idea] |= {"gain": float(gain.mean()), "gain_se": float(gain.std() / len(gain) ** 0.5)}
            found.append(row)
            write_json(RESULTS, {"command": "python studies/ideas.py", "cells": found})
            print(name, labels, seed, {idea: round(row[idea]["gain"], 4) for idea in IDEAS}, flush=True)
    for labels in BUDGETS:
        for idea in IDEAS:
            own = [c[idea] for c in found if c["labels"] == labels]
            nll, accuracy, ece = (np.mean([o["held_out"][m] for o in own]) for m in ("nll", "accuracy", "ece"))
            surely = sum(o["gain"] > 2 * o["gain_se"] for o in own), sum(o["gain"] < -2 * o["gain_se"] for o in own)
            print(
                f"{labels:4} {idea:16} nll {nll:.3f} accuracy {accuracy:.3f} ece {ece:.3f} better, worse in {surely} of {len(own)}"
            )
    return 0


if __name__ == "__main__":
    sys.exit(main())
