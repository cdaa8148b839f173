"""Many small convex problems at once: L-BFGS in which every problem has its own history, step and stopping point.

Nothing is shared between problems but the arithmetic, so solving a problem in a batch or alone gives the same answer
(a joint line search or a joint gradient clip would couple them).
"""

from __future__ import annotations

import logging
from collections.abc import Callable

import torch
from torch import Tensor

logger = logging.getLogger(__name__)

HISTORY = 6
MAX_BACKTRACKS = 30
ARMIJO = 1e-4
# Iterations without a lower loss or a gradient shorter by a tenth, after which rounding is all that moves a problem.
PATIENCE = 20

# Takes points (m, size) and the numbers of the m problems they belong to; gives losses (m,) and gradients (m, size).
Objective = Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]
# Takes gradients (m, size) and problem numbers; gives them multiplied by a guess of the inverse Hessian.
Preconditioner = Callable[[Tensor, Tensor], Tensor]


def minimise(
    objective: Objective,
    start: Tensor,
    *,
    tolerance: float,
    precondition: Preconditioner | None = None,
    floor: float = 0.0,
    max_iterations: int = 500,
) -> Tensor:
    """Minimise independent convex functions.

    Args:
        objective: Value and gradient of some of the problems.
        start: (problems, size) starting points.
        precondition: A symmetric positive guess of each inverse Hessian, in which the steps are scaled; None = identity.
        tolerance: A problem is done when its gradient norm is at most this times its norm at the start.
        floor: Or at most this: a start that is the minimum but for rounding has no norm to take a fraction of.
        max_iterations: Iterations at most; a problem that float rounding keeps from the tolerance stops where its line
            search finds no lower point, or where ``PATIENCE`` iterations have brought nothing. What is not done by then is
            told as a warning of the log.

    Returns:
        (problems, size) minimisers.
    """
    result = start.clone()
    active = torch.arange(len(start), device=start.device)
    x = start.clone()
    loss, gradient = objective(x, active)
    norm = gradient.norm(dim=1)
    target = (tolerance * norm).clamp_min(floor)
    done = norm <= target
    lowest, shortest, since = loss, norm, torch.zeros_like(active)
    steps: list[Tensor] = []
    changes: list[Tensor] = []
    inner: list[Tensor] = []
    for iteration in range(max_iterations):
        # A solved problem that waits to be dropped stays where it is.
        direction = torch.where(
            done[:, None], 0.0, -_newton_step(gradient, active, steps, changes, inner, precondition)
        )
        slope = _dot(direction, gradient)
        size = torch.ones_like(loss)
        if iteration == 0 and precondition is None:
            size = 1 / gradient.norm(dim=1).clamp_min(1)
        x_new, loss_new, gradient_new, moved = _line_search(objective, active, x, loss, direction, slope, size)
        steps.append(x_new - x)
        changes.append(gradient_new - gradient)
        inner.append(_dot(steps[-1], changes[-1]))
        del steps[:-HISTORY], changes[:-HISTORY], inner[:-HISTORY]
        x, loss, gradient = x_new, loss_new, gradient_new
        norm = gradient.norm(dim=1)
        lower, shorter = loss < lowest - _rounding(lowest), norm < 0.9 * shortest
        lowest, shortest = torch.where(lower, loss, lowest), torch.where(shorter, norm, shortest)
        since = torch.where(lower | shorter, 0, since + 1)
        done = done | (norm <= target) | ~moved | (since >= PATIENCE)
        if bool(done.all()):
            break
        # Dropping solved problems copies the rest, so it waits until it pays.
        if float(done.float().mean()) > 0.2:
            result[active] = x
            keep = (~done).nonzero().squeeze(1)
            active, x, loss, gradient, target = active[keep], x[keep], loss[keep], gradient[keep], target[keep]
            steps, changes, inner = ([item[keep] for item in kept] for kept in (steps, changes, inner))
            lowest, shortest, since, done = lowest[keep], shortest[keep], since[keep], done[keep]
    else:
        logger.warning(
            "%d of %d probe problems had not converged after %d iterations",
            int((~done).sum()),
            len(start),
            max_iterations,
        )
    result[active] = x
    return result


def _dot(a: Tensor, b: Tensor) -> Tensor:
    """Row-wise inner products (m,) of (m, size), without the product's copy in memory."""
    return torch.bmm(a[:, None, :], b[:, :, None])[:, 0, 0]


def _rounding(loss: Tensor) -> Tensor:
    """Losses closer than this count as equal."""
    return 8 * torch.finfo(loss.dtype).eps * loss.abs()


def _newton_step(
    gradient: Tensor,
    active: Tensor,
    steps: list[Tensor],
    changes: list[Tensor],
    inner: list[Tensor],
    guess: Preconditioner | None,
) -> Tensor:
    """Two-loop recursion (Nocedal and Wright 2006, algorithm 7.4); a problem skips pairs without positive curvature."""
    q = gradient.clone()
    tiny = torch.finfo(q.dtype).tiny
    rho = [torch.where(v > 0, 1 / v.clamp_min(tiny), torch.zeros_like(v)) for v in inner]
    alphas = []
    for s, y, r in reversed(list(zip(steps, changes, rho, strict=True))):
        alpha = r * _dot(s, q)
        q.addcmul_(alpha[:, None], y, value=-1)
        alphas.append(alpha)
    guessed = guess or (lambda vectors, _: vectors)
    q = guessed(q, active)
    if steps:
        # A guess knows the shape of the curvature better than its size, which the last step has shown (7.20).
        size = _dot(changes[-1], guessed(changes[-1], active))
        q *= torch.where((inner[-1] > 0) & (size > 0), inner[-1] / size.clamp_min(tiny), 1.0)[:, None]
    for s, y, r, alpha in zip(steps, changes, rho, reversed(alphas), strict=True):
        q.addcmul_((alpha - r * _dot(y, q))[:, None], s)
    return q


def _line_search(
    objective: Objective, active: Tensor, x: Tensor, loss: Tensor, direction: Tensor, slope: Tensor, size: Tensor
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Backtracking (Armijo) for every problem by itself; the last value says which problems found a lower point."""
    x_new = x + size[:, None] * direction
    loss_new, gradient_new = objective(x_new, active)
    slack = _rounding(loss)
    failed = ~(loss_new <= loss + ARMIJO * size * slope + slack)
    for _ in range(MAX_BACKTRACKS):
        if not bool(failed.any()):
            break
        again = failed.nonzero().squeeze(1)
        size[again] *= 0.5
        x_new[again] = x[again] + size[again, None] * direction[again]
        loss_new[again], gradient_new[again] = objective(x_new[again], active[again])
        failed[again] = ~(loss_new[again] <= loss[again] + ARMIJO * size[again] * slope[again] + slack[again])
    if bool(failed.any()):
        x_new[failed] = x[failed]
        loss_new[failed], gradient_new[failed] = objective(x[failed], active[failed])
    moved = ~failed & (x_new != x).any(dim=1)
    return x_new, loss_new, gradient_new, moved
