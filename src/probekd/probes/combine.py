"""Several readers together: a weighted sum of their logits, the weights learned out of fold."""

from __future__ import annotations

import numpy as np
import torch
from scipy.optimize import minimize

from probekd.probes.calibrate import gold_losses

# Holds the weights near the best reader alone, in units where a reader alone would get one. With weights as free as a
# hundred labels leave them, stacks won out of fold by luck and lost on held-out rows (docs/probes.md).
WEIGHT_L2 = 0.1


def pool_weights(logits: np.ndarray, answers: np.ndarray) -> np.ndarray:
    """Non-negative weights (J,) of a logarithmic opinion pool: sum_j a_j z_j minimises the mean log-loss.

    Args:
        logits: (J, n, K) of J readers, the best one first, each calibrated, -inf for absent options.
        answers: (n,).
    """
    z = torch.as_tensor(logits, dtype=torch.float64)
    absent = torch.where(z[0].isfinite(), 0.0, -torch.inf).to(torch.float64)
    z = torch.where(z.isfinite(), z, 0.0)
    gold = torch.as_tensor(answers)
    at = torch.arange(len(gold))
    alone = torch.zeros(len(z), dtype=torch.float64)
    alone[0] = 1

    def objective(weights: np.ndarray) -> tuple[float, np.ndarray]:
        a = torch.as_tensor(weights)
        logp = torch.log_softmax(torch.einsum("j,jnk->nk", a, z) + absent, dim=1)
        residual = logp.exp()
        residual[at, gold] -= 1
        loss = -logp[at, gold].mean() + WEIGHT_L2 * (a - alone).square().sum()
        gradient = torch.einsum("jnk,nk->j", z, residual) / len(gold) + 2 * WEIGHT_L2 * (a - alone)
        return float(loss), gradient.numpy()

    bounds = [(0.0, None)] * len(z)
    found = minimize(objective, alone.numpy(), jac=True, method="L-BFGS-B", bounds=bounds)
    return np.asarray(found.x)


def pooled(weights: np.ndarray, logits: np.ndarray) -> np.ndarray:
    """(n, K) from weights (J,) and logits (J, n, K); -inf stays."""
    there = np.isfinite(logits[0])
    total = np.einsum("j,jnk->nk", weights, np.where(np.isfinite(logits), logits, 0.0))
    return np.where(there, total, -np.inf)


def stack_losses(logits: np.ndarray, answers: np.ndarray, folds: np.ndarray) -> np.ndarray:
    """(n,) log-losses of the stack of J readers, the weights of each fold learned on the others.

    Args:
        logits: (J, n, K) of predictions out of fold.
        answers: (n,).
        folds: (n,) any fold numbers.
    """
    losses = np.empty(len(answers))
    for g in np.unique(folds):
        rest, held = folds != g, folds == g
        weights = pool_weights(logits[:, rest], answers[rest])
        losses[held] = gold_losses(pooled(weights, logits[:, held]), answers[held])
    return losses
