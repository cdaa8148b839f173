"""studies/ideas.py: its plain solver agrees with the package's, and each idea does what it is called."""

from __future__ import annotations

import ideas
import numpy as np
import pytest
import torch
from ideas import Cell, Problem, Rows

from probekd.probes.logistic import LogisticProbe, OptionProbe

DEPTHS, N, D, K = 2, 60, 12, 3


def rows(*, options: bool, n: int = N, seed: int = 0) -> tuple[Rows, torch.Tensor]:
    """Standardised states of two depths, a direction for each answer planted in them, and the answers."""
    generator = torch.Generator().manual_seed(seed)
    gold = torch.arange(n) % K
    x = torch.randn(DEPTHS, n, *((K, D) if options else (D,)), generator=generator)
    if options:
        x[:, torch.arange(n), gold, 0] += 1.5
    else:
        x[:, torch.arange(n), gold] += 1.5
    flat = x.flatten(1, -2)
    x = (x - flat.mean(1).view(DEPTHS, *[1] * (x.dim() - 2), D)) / flat.std(1, correction=0).view(
        DEPTHS, *[1] * (x.dim() - 2), D
    )
    return Rows(x=x, present=torch.ones(n, K, dtype=torch.bool)), gold


def problem(*, options: bool) -> Problem:
    labelled, gold = rows(options=options)
    return Problem(rows=labelled, gold=gold, pool=rows(options=options, n=90, seed=1)[0])


@pytest.mark.parametrize("options", [False, True])
def test_the_plain_solver_agrees_with_the_packages(options: bool) -> None:
    p = problem(options=options)
    said = p.rows.logits(ideas.logistic(p, 0.3)).numpy()
    for depth in range(DEPTHS):
        x = p.rows.x[depth].numpy()
        probe = (OptionProbe if options else LogisticProbe)(l2=0.3).fit(x, p.gold.numpy())
        expected = probe.decision_function(x)
        centred = [z - z.mean(1, keepdims=True) for z in (said[depth], expected)]
        assert centred[0] == pytest.approx(centred[1], abs=5e-3)


def test_ties_hold_the_depths_weights_together() -> None:
    p = problem(options=True)

    def apart(w: torch.Tensor) -> float:
        return float((w[0, :-1] - w[1, :-1]).norm())

    free, held = ideas.logistic(p, 0.3), ideas.tied(1000.0)(p, 0.3)
    assert apart(held) < 0.05 * apart(free)
    assert ideas.tied(0.0)(p, 0.3) == pytest.approx(free, abs=5e-3)


@pytest.mark.parametrize("options", [False, True])
def test_a_strong_penalty_leaves_the_mean_difference(options: bool) -> None:
    p = problem(options=options)
    w = ideas.mean_difference(p, 1e4)[:, :-1]
    at = torch.arange(N)
    for depth in range(DEPTHS):
        x = p.rows.x[depth]
        of_classes = [x[p.gold == k].mean(0) for k in range(K)]
        direction = (x[at, p.gold] - x.mean(1)).mean(0)[:, None] if options else torch.stack(of_classes, 1)
        cosine = (w[depth] * direction).sum() / (w[depth].norm() * direction.norm())
        assert float(cosine) == pytest.approx(1, abs=1e-3)
        assert float(w[depth].norm()) > 0.1


def test_pseudo_labels_listen_to_the_pool() -> None:
    p = problem(options=True)
    turned = Problem(rows=p.rows, gold=p.gold, pool=Rows(x=-p.pool.x, present=p.pool.present))
    own, other = ideas.pseudo_labels(p, 1.0), ideas.pseudo_labels(turned, 1.0)
    assert not torch.allclose(own, other, atol=1e-2)


def test_rows_out_of_fold_are_read_by_models_that_never_saw_them() -> None:
    labelled, gold = rows(options=False)
    noise = torch.randint(0, K, (N,), generator=torch.Generator().manual_seed(3)).numpy()
    folds = np.arange(N) % ideas.FOLDS
    cell = Cell(
        labelled=labelled, pool=labelled, test=labelled, answers=noise, test_answers=gold.numpy(), deals=(folds,)
    )
    own, test = cell.once(ideas.logistic, 0.01, folds)
    assert (own.argmax(1) == noise).mean() < 0.55  # chance is a third
    assert (test.argmax(1) == noise).mean() > 0.6  # the mean of the folds' models has learned the noise
