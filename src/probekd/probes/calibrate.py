"""One temperature, fitted on logits of rows that their model never saw."""

from __future__ import annotations

import numpy as np

# A temperature outside is a sign of logits that carry nothing; the bound keeps it finite.
MIN_BETA, MAX_BETA = 1e-3, 1e3
NEWTON_STEPS = 30


def log_softmax(logits: np.ndarray) -> np.ndarray:
    """Log-probabilities over the last axis; -inf stays -inf."""
    shifted = logits - logits.max(axis=-1, keepdims=True)
    return np.asarray(shifted - np.log(np.exp(shifted).sum(axis=-1, keepdims=True)))


def gold_losses(logits: np.ndarray, answers: np.ndarray) -> np.ndarray:
    """Negative log-probability of the gold option: (..., n) from logits (..., n, K) and answers (n,)."""
    gold = np.broadcast_to(answers[:, None], (*logits.shape[:-1], 1))
    return np.asarray(-np.take_along_axis(log_softmax(logits), gold, axis=-1)[..., 0])


def fit_temperature(logits: np.ndarray, answers: np.ndarray) -> np.ndarray:
    """Temperature that minimises the mean log-loss, for each of many sets of logits at once.

    The loss is convex in beta = 1 / T. Newton steps on log(beta), guarded by the bounds, find its minimum.

    Args:
        logits: (..., n, K), -inf for absent options.
        answers: (n,) gold indices.

    Returns:
        (...) temperatures.
    """
    present = np.isfinite(logits)
    z = np.where(present, logits, 0.0).astype(np.float64)
    # Scale first, so that one start and one set of bounds serve log-likelihoods and probe logits alike.
    spread = np.sqrt(
        (np.where(present, z - (z.sum(-1) / present.sum(-1))[..., None], 0.0) ** 2).sum((-1, -2))
        / present.sum((-1, -2))
    )
    spread = np.where(spread > 0, spread, 1.0)
    z = z / spread[..., None, None]
    gold = np.take_along_axis(z, np.broadcast_to(answers[:, None], (*z.shape[:-1], 1)), axis=-1)[..., 0]
    low, high = np.full(spread.shape, np.log(MIN_BETA)), np.full(spread.shape, np.log(MAX_BETA))
    log_beta = np.zeros(spread.shape)
    for _ in range(NEWTON_STEPS):
        beta = np.exp(log_beta)[..., None, None]
        p = np.exp(log_softmax(np.where(present, beta * z, -np.inf)))
        mean = (p * z).sum(-1)
        slope = (mean - gold).mean(-1)
        curvature = ((p * z**2).sum(-1) - mean**2).mean(-1)
        # The sign of the slope brackets the minimum; a Newton step that leaves the bracket becomes a bisection.
        high = np.where(slope > 0, log_beta, high)
        low = np.where(slope <= 0, log_beta, low)
        beta = beta[..., 0, 0]
        step = log_beta - slope / np.maximum(beta * curvature + np.maximum(slope, 0), 1e-12)
        log_beta = np.where((step > low) & (step < high), step, (low + high) / 2)
    return np.asarray(spread / np.exp(log_beta))
