from __future__ import annotations

import numpy as np
import pytest
from scipy.optimize import minimize
from scipy.special import log_softmax, softmax

from probekd.student.linear import LinearRows, answer_rows, mixed
from probekd.student.losses import UNLABELLED
from probekd.targets import SoftTargets
from probekd.tasks.base import Example


def made(*, options: bool, n: int = 40, m: int = 30, seed: int = 0) -> tuple[list[Example], np.ndarray, SoftTargets]:
    """Rows, embeddings and targets: n labelled rows and m of a pool; 2 to 4 options or three classes."""
    draw = np.random.default_rng(seed)
    counts = 2 + np.arange(n + m) % 3 if options else np.full(n + m, 3)
    rows = [
        Example(id=f"r{i}", question="?", options=tuple("abcd"[:k]), answer=int(draw.integers(k)) if i < n else None)
        for i, k in enumerate(counts)
    ]
    x = draw.normal(size=(n + m, 4 if options else 1, 5)).astype(np.float32)
    targets = SoftTargets(
        ids=tuple(e.id for e in rows),
        splits=("train",) * n + ("unlabelled",) * m,
        logits=tuple(draw.normal(size=k) * 2 for k in counts),
        sources=("oof",) * n + ("pooled",) * m,
        folds=(0,) * n + (-1,) * m,
    )
    return rows, x, targets


def test_a_mixture_holds_the_softened_target_and_the_gold_label() -> None:
    logits = np.array([1.0, 3.0, -np.inf])
    soft = softmax(logits / 2)
    np.testing.assert_allclose(mixed(logits, UNLABELLED, alpha=0.3, temperature=2), soft)
    np.testing.assert_allclose(mixed(logits, 0, alpha=0.3, temperature=2), 0.7 * soft + 0.3 * np.eye(3)[0])
    np.testing.assert_allclose(mixed(logits, 2, alpha=1, temperature=1), np.eye(3)[2])


@pytest.mark.parametrize("options", [False, True])
def test_heads_minimise_the_mixture_of_the_losses(options: bool) -> None:
    rows, x, targets = made(options=options)
    strengths, alpha, temperature = (0.1, 1.0), 0.3, 2.0
    fit = LinearRows.of(rows, x).fit(targets, strengths, alpha=alpha, temperature=temperature)
    said = answer_rows(fit, x, rows)
    counts = [len(e.options) for e in rows]
    states = np.concatenate([x[i, :k] for i, k in enumerate(counts)]) if options else x[:, 0]
    mean, scale = states.mean(0), states.std(0)
    outputs = 1 if options else 3

    def scores(point: np.ndarray) -> list[np.ndarray]:
        w, b = point[: 5 * outputs].reshape(5, outputs), point[5 * outputs :]
        each = (x - mean) / scale @ w
        return [row[:k, 0] if options else row[0] + b for row, k in zip(each, counts, strict=True)]

    for number, l2 in enumerate(strengths):

        def loss(point: np.ndarray, l2: float = l2) -> float:
            total = 0.0
            for e, z, t in zip(rows, scores(point), targets.logits, strict=True):
                logq = log_softmax(z)
                kl = -softmax(t / temperature) @ logq
                total += kl if e.answer is None else (1 - alpha) * kl - alpha * logq[e.answer]
            w = point[: 5 * outputs]
            return total / len(rows) + l2 / 2 * float(w @ w)

        best = minimize(loss, np.zeros(5 * outputs + (0 if options else 3)), method="BFGS", options={"gtol": 1e-6}).x
        for ours, theirs in zip(said[number], scores(best), strict=True):
            ours = ours[np.isfinite(ours)]
            np.testing.assert_allclose(ours - ours.mean(), theirs - theirs.mean(), rtol=5e-3, atol=2e-3)


def test_rows_without_a_target_play_no_part() -> None:
    rows, x, targets = made(options=True)
    some = SoftTargets(**{name: getattr(targets, name)[:40] for name in vars(targets)})
    with_pool = LinearRows.of(rows, x).fit(some, (0.1,), alpha=0.5, temperature=1)
    without = LinearRows.of(rows[:40], x[:40]).fit(some, (0.1,), alpha=0.5, temperature=1)
    np.testing.assert_allclose(answer_rows(with_pool, x, rows), answer_rows(without, x, rows), rtol=2e-3, atol=2e-4)
