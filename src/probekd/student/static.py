"""Learning of a ``static`` student: its head is solved for, at several strengths, of which held-out rows choose one."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch

from probekd.config import StudentConfig
from probekd.metrics import PROBABILITY_FLOOR
from probekd.probes.calibrate import fit_temperature, gold_losses, log_softmax
from probekd.student.embed import embed_encoded
from probekd.student.history import Epoch
from probekd.student.inputs import Encoded
from probekd.student.kinds.static import Static
from probekd.student.linear import LinearRows, answer_rows, mixture
from probekd.student.projection import Projection, fit_projection
from probekd.student.rows import TrainingRow

STRENGTHS = (0.003, 0.01, 0.03, 0.1, 0.3, 1.0, 3.0)
FOLDS = 5


def solve_head(
    kind: Static, rows: Sequence[TrainingRow], held_out: Sequence[Encoded], answers: np.ndarray, config: StudentConfig
) -> tuple[Epoch, ...]:
    """Solve for the head of ``kind`` and set it; returns its loss as that of one epoch.

    Where rows teach the teacher's states, the head reads them as the embedding predicts them (``fit_projection``), and is
    folded into one on the embedding itself.

    The strength is the one with the lowest calibrated log-loss on the held-out rows. Without any, it is the one whose heads say best
    what the rows that they have not learnt from were to teach: gold labels of rows held out would not do, since the targets
    of the others were made with their help.

    Args:
        kind: The student.
        rows: What it learns from.
        held_out: Labelled rows; possibly none.
        answers: Theirs, (n,).
        config: ``temperature``.
    """
    lessons = [row.lesson for row in rows]
    counts = [row.encoded.options for row in rows]
    embeddings = embed_encoded(kind.network.embedder, kind.tokenizer, [row.encoded for row in rows])
    states = [lesson.states for lesson in lessons if lesson.states is not None]
    projection = fit_projection(embeddings, states) if states else Projection.identity(embeddings.shape[-1])
    embeddings = projection.apply(embeddings)
    learning = LinearRows.of(embeddings, counts)
    if held_out:
        watching = projection.apply(embed_encoded(kind.network.embedder, kind.tokenizer, held_out))
        fit = learning.fit(lessons, STRENGTHS, temperature=config.temperature)
        said = answer_rows(fit, watching, [row.options for row in held_out])
        temperatures = fit_temperature(said, answers)  # which the student will get for itself
        losses = gold_losses(said / temperatures[:, None, None], answers).mean(1)
    else:
        folds = np.arange(len(rows)) % FOLDS
        train = np.stack([folds != f for f in range(FOLDS)])
        apart = learning.fit(lessons, STRENGTHS, temperature=config.temperature, train=train)
        each = answer_rows(apart, embeddings, counts).reshape(FOLDS, len(STRENGTHS), len(rows), -1)
        own = each[folds, :, np.arange(len(rows))].transpose(1, 0, 2)  # (S, n, K)
        losses = _cross_entropy(own, rows, config.temperature)
        fit = learning.fit(lessons, STRENGTHS, temperature=config.temperature)
    best = int(losses.argmin())
    weight, bias = projection.folded(fit.weight[best].cpu().numpy(), fit.bias[best].cpu().numpy())
    with torch.no_grad():
        kind.network.head.weight.copy_(torch.from_numpy(weight.T))
        kind.network.head.bias.copy_(torch.from_numpy(bias))
    loss = float(_cross_entropy(answer_rows(fit, embeddings, counts)[[best]], rows, config.temperature)[0])
    return (Epoch(epoch=1.0, steps=1, loss=loss, log_loss=float(losses[best]) if held_out else None),)


def _cross_entropy(logits: np.ndarray, rows: Sequence[TrainingRow], temperature: float) -> np.ndarray:
    """Mean cross-entropy (S,) of logits (S, n, K) to what the rows teach."""
    logp = np.maximum(log_softmax(logits), np.log(PROBABILITY_FLOOR))
    total, weights = np.zeros(len(logits)), 0.0
    for i, row in enumerate(rows):
        weight, probs = mixture(row.lesson, temperature)
        total -= weight * (logp[:, i, : len(probs)] @ probs)
        weights += weight
    return total / weights
