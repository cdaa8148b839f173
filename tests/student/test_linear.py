from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from scipy.optimize import minimize
from scipy.special import log_softmax, softmax

from probekd.config import StudentConfig
from probekd.student.lessons import Lesson, gold_lessons, soft_lessons
from probekd.student.linear import LinearRows, answer_rows, mixture
from probekd.student.losses import RowWeights
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


def lessons(rows: list[Example], targets: SoftTargets, alpha: float) -> list[Lesson]:
    config = StudentConfig(model="m", alpha=alpha)
    found = soft_lessons(rows, targets, config, "here")
    return [found[e.id] for e in rows]


def test_a_mixture_holds_the_softened_target_and_the_gold_label() -> None:
    logits = np.array([1.0, 3.0, -np.inf])
    soft = softmax(logits / 2)

    def mixed(gold: float, of_target: float, answer: int) -> tuple[float, np.ndarray]:
        weights = RowWeights(gold=gold, soft=of_target)
        return mixture(Lesson(target_logits=logits, answer=answer, weights=weights), 2.0)

    for (weight, probs), expected in (
        (mixed(0, 1, 0), (1, soft)),
        (mixed(0.3, 0.7, 0), (1, 0.7 * soft + 0.3 * np.eye(3)[0])),
        (mixed(1, 1, 2), (2, soft / 2 + np.eye(3)[2] / 2)),
        (mixed(0, 0, 0), (0, np.zeros(3))),
    ):
        assert weight == pytest.approx(expected[0])
        np.testing.assert_allclose(probs, expected[1])


@pytest.mark.parametrize("options", [False, True])
def test_heads_minimise_the_mixture_of_the_losses(options: bool) -> None:
    rows, x, targets = made(options=options)
    strengths, alpha, temperature = (0.1, 1.0), 0.3, 2.0
    counts = [len(e.options) for e in rows]
    fit = LinearRows.of(x, counts).fit(lessons(rows, targets, alpha), strengths, temperature=temperature)
    said = answer_rows(fit, x, counts)
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


def test_a_class_that_nobody_speaks_of_is_given_what_a_rule_of_succession_gives() -> None:
    rows, x, _ = made(options=False)
    two = [replace(e, answer=i % 2) for i, e in enumerate(rows)]
    taught = [gold_lessons(two)[e.id] for e in two]
    fit = LinearRows.of(x, [3] * 70).fit(taught, (0.1, 3.0), temperature=1)
    for logits in answer_rows(fit, x, [3] * 70):
        assert softmax(logits, axis=1)[:, 2].mean() == pytest.approx(1 / 72, rel=1e-3)


def test_rows_that_teach_nothing_play_no_part_and_nor_do_rows_outside_a_training_set() -> None:
    rows, x, targets = made(options=True)
    counts = [len(e.options) for e in rows]
    taught = lessons(rows, targets, 0.5)
    nothing = [gold_lessons(rows)[e.id] for e in rows]
    few = LinearRows.of(x[:40], counts[:40]).fit(taught[:40], (0.1,), temperature=1)
    expected = answer_rows(few, x, counts)
    with_pool = LinearRows.of(x, counts)
    silent = with_pool.fit([*taught[:40], *nothing[40:]], (0.1,), temperature=1)
    outside = with_pool.fit(taught, (0.1,), temperature=1, train=(np.arange(70) < 40)[None])
    for fit in (silent, outside):
        np.testing.assert_allclose(answer_rows(fit, x, counts), expected, rtol=2e-3, atol=2e-4)
