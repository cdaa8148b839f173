"""Classes that a model's training rows do not have: nothing can be learned of them, and they happen all the same.

Solvers leave such a class out of the problem (its logit is -inf). It then gets the smaller of what two rules of
succession give, n being the training rows: a class that never came up has the next row with probability 1 / (n + 2), and
all of them together with (s + 1) / (n + 2), where s rows were the first and only ones of their class (Laplace; Good
1953, Biometrika 40:237, who has s / n).
"""

from __future__ import annotations

import numpy as np
from scipy.special import logsumexp

from probekd.probes.calibrate import fit_temperature

# A logit whose exponential is 0 in any precision, and with which solvers can still reckon.
NEVER = -1e4


def class_counts(answers: np.ndarray, train: np.ndarray, classes: int) -> np.ndarray:
    """(T, classes) rows of each class in training sets (T, n) bool."""
    return np.stack([np.bincount(answers[rows], minlength=classes) for rows in train])


def unseen_shares(counts: np.ndarray, present: np.ndarray) -> np.ndarray:
    """(..., K) probability of each class that no training row had; 0 for the others and for options a row does not have.

    Args:
        counts: (..., K) training rows of each class.
        present: (..., K) bool: the options of the rows to be predicted.
    """
    unseen = (counts == 0) & present
    number = unseen.sum(-1, keepdims=True)
    together = np.minimum(number, (counts == 1).sum(-1, keepdims=True) + 1) / (counts.sum(-1, keepdims=True) + 2)
    return np.where(unseen, together / np.maximum(number, 1), 0.0)


def seen_temperature(logits: np.ndarray, answers: np.ndarray, shares: np.ndarray) -> np.ndarray:
    """(C,) temperatures of logits (C, n, K) by the rows whose gold class their model saw; 1 where there are none.

    Args:
        logits: -inf for unseen classes.
        answers: (n,).
        shares: (n, K): see ``unseen_shares``.
    """
    seen = shares[np.arange(len(answers)), answers] == 0
    if seen.all():
        return fit_temperature(logits, answers)
    return fit_temperature(logits[:, seen], answers[seen]) if seen.any() else np.ones(len(logits))


def fill(logits: np.ndarray, shares: np.ndarray, temperature: float = 1.0) -> np.ndarray:
    """Logits (..., K) in which unseen classes, -inf before, have their shares once divided by the temperature.

    Args:
        logits: Of the classes seen; -inf for the others.
        shares: (..., K): see ``unseen_shares``.
        temperature: By which the logits are still to be divided.
    """
    if not shares.any():
        return logits
    shares = np.where(np.isneginf(logits), shares, 0.0)
    seen = logsumexp(logits / temperature, axis=-1, keepdims=True)
    seen = np.where(np.isfinite(seen), seen, 0.0)  # a row may have no option that was ever seen
    with np.errstate(divide="ignore"):
        odds = np.log(shares) - np.log1p(-shares.sum(-1, keepdims=True))
    return np.where(shares > 0, temperature * (seen + odds), logits).astype(logits.dtype)


def mean_of_models(logits: np.ndarray) -> np.ndarray:
    """(n, K) mean over models of logits (P, n, K), of each class over those that saw it; -inf where none did."""
    seen = ~np.isneginf(logits)
    total = np.where(seen, logits, 0).sum(0)
    return np.where(seen.any(0), total / np.maximum(seen.sum(0), 1).astype(logits.dtype), -np.inf)
