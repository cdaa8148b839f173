"""The solvers that are timed, each as a user would call it, and what their answers are worth, worked out in float64."""

from __future__ import annotations

import importlib.util
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from importlib.metadata import version

import numpy as np
from scipy.optimize import minimize
from sklearn.exceptions import ConvergenceWarning
from sklearn.linear_model import LogisticRegression
from sklearn.preprocessing import StandardScaler

from generated import CLASSES, FOLDS, Job
from probekd.config import ProbeConfig
from probekd.probes import logistic
from probekd.probes.features import Features, LinearFit

STRENGTHS = (0.03, 0.1, 0.3, 1.0, 3.0, 10.0)
TOLERANCE: float = ProbeConfig().tolerance
MAX_ITERATIONS = 10_000
REFERENCE_TOLERANCE = 1e-10
LMPROBE_CAN = (
    "Probe(model=None).fit_from_activations(X, y) takes precomputed states of one depth: it standardises them "
    "(StandardScaler) and fits one scikit-learn LogisticRegression(solver='lbfgs'), K classes included; C and tol go "
    "through classifier_kwargs"
)
LMPROBE_CANNOT = (
    "on precomputed states it has no loop over depths, folds or strengths (its layer sweep takes prompts and a model), "
    "no out-of-fold predictions, no choice of depth, no calibration, and no scorer shared by a row's options: the "
    "benchmark writes the loops around it"
)


@dataclass(frozen=True, kw_only=True)
class Solution:
    """Weights (d, outputs) and bias (outputs,) on features standardised by the training rows, float64."""

    weight: np.ndarray
    bias: np.ndarray


@dataclass(frozen=True, order=True)
class At:
    """One problem of a job: a depth, a fold left out, and the number of a strength."""

    depth: int
    fold: int
    strength: int


def problems(depths: tuple[int, ...]) -> Iterator[At]:
    """Every problem of some depths."""
    return (At(depth, fold, s) for depth in depths for fold in range(FOLDS) for s in range(len(STRENGTHS)))


def ours(job: Job, depths: tuple[int, ...]) -> list[LinearFit]:
    """One call a depth, all folds and strengths in it."""
    present = np.ones((len(job.answers), CLASSES), dtype=bool)
    return [
        logistic.solve(Features(job.states[depth], present), job.answers, job.train, STRENGTHS, tolerance=TOLERANCE)
        for depth in depths
    ]


def ours_at(job: Job, fit: LinearFit, at: At) -> Solution:
    """One solution of ours in the terms of the others."""
    _, mean, scale = standardised(job, at, np.float64)
    number = at.fold * len(STRENGTHS) + at.strength
    weight, bias = fit.weight[number].double().numpy(), fit.bias[number].double().numpy()
    return Solution(weight=weight * scale[:, None], bias=bias + mean @ weight)


def standardised(job: Job, at: At, dtype: type[np.floating]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """A problem's training states, standardised by themselves; mean and scale (d,)."""
    x = job.states[at.depth][job.train[at.fold]]
    scaler = StandardScaler().fit(x.reshape(-1, x.shape[-1]).astype(dtype))
    flat = scaler.transform(x.reshape(-1, x.shape[-1]).astype(dtype))
    return flat.reshape(x.shape), scaler.mean_, scaler.scale_


def sklearn_fit(x: np.ndarray, y: np.ndarray, strength: float, tol: float) -> Solution:
    """scikit-learn's default solver; its loss is ours times n."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)  # what it reached is measured
        model = LogisticRegression(C=1 / (len(x) * strength), tol=tol, max_iter=MAX_ITERATIONS).fit(x, y)
    return Solution(weight=model.coef_.T.astype(np.float64), bias=model.intercept_.astype(np.float64))


def scipy_fit(x: np.ndarray, y: np.ndarray, strength: float, tol: float) -> Solution:
    """The listwise loss of (m, k, d) states by L-BFGS-B: one weight vector, a softmax over a row's options."""
    rows = np.arange(len(x))
    flat = x.reshape(-1, x.shape[-1])

    def objective(w: np.ndarray) -> tuple[float, np.ndarray]:
        scores = (flat @ w.astype(x.dtype)).reshape(len(x), -1)
        scores -= scores.max(1, keepdims=True)
        p = np.exp(scores)
        norm = p.sum(1, keepdims=True)
        loss = float((np.log(norm[:, 0]) - scores[rows, y]).mean(dtype=np.float64)) + strength / 2 * float(w @ w)
        p /= norm
        p[rows, y] -= 1
        return loss, (p.ravel() @ flat).astype(np.float64) / len(x) + strength * w

    # As scikit-learn sets it: only the gradient stops.
    options = {"gtol": tol, "ftol": 64 * np.finfo(np.float64).eps, "maxiter": MAX_ITERATIONS, "maxfun": MAX_ITERATIONS}
    found = minimize(objective, np.zeros(x.shape[-1]), jac=True, method="L-BFGS-B", options=options)
    return Solution(weight=found.x[:, None], bias=np.zeros(1))


def loop(job: Job, depths: tuple[int, ...], tol: float) -> None:
    """A user's loop: standardise once a fold, then every strength."""
    fit = scipy_fit if job.options else sklearn_fit
    for at in problems(depths):
        if at.strength == 0:
            x, _, _ = standardised(job, at, np.float32)
            y = job.answers[job.train[at.fold]]
        fit(x, y, STRENGTHS[at.strength], tol)


def lmprobe_version() -> str | None:
    """Version of lmprobe, None where it is not installed."""
    return version("lmprobe") if importlib.util.find_spec("lmprobe") else None


def lmprobe_fit(x: np.ndarray, y: np.ndarray, strength: float, tol: float) -> Solution:
    """One fit by lmprobe, from states as they come: it standardises them each time."""
    from lmprobe import Probe

    wanted = {"C": 1 / (len(x) * strength), "tol": tol, "max_iter": MAX_ITERATIONS}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)
        model = Probe(classifier_kwargs=wanted).fit_from_activations(x, y).classifier_
    return Solution(weight=model.coef_.T.astype(np.float64), bias=model.intercept_.astype(np.float64))


def lmprobe_at(job: Job, at: At, tol: float) -> Solution:
    """One problem by lmprobe."""
    rows = job.train[at.fold]
    return lmprobe_fit(job.states[at.depth][rows], job.answers[rows], STRENGTHS[at.strength], tol)


def lmprobe_loop(job: Job, depths: tuple[int, ...], tol: float) -> None:
    """The same loop around lmprobe."""
    for at in problems(depths):
        if at.strength == 0:
            rows = job.train[at.fold]
            x, y = job.states[at.depth][rows], job.answers[rows]
        lmprobe_fit(x, y, STRENGTHS[at.strength], tol)


def value(x: np.ndarray, y: np.ndarray, strength: float, solution: Solution) -> tuple[float, float]:
    """Loss and gradient norm in float64 at a solution."""
    rows = np.arange(len(x))
    options = x.ndim == 3
    scores = x @ solution.weight
    scores = scores[:, :, 0] if options else scores + solution.bias
    top = scores.max(1, keepdims=True)
    log_norm = top[:, 0] + np.log(np.exp(scores - top).sum(1))
    residual = np.exp(scores - log_norm[:, None])
    residual[rows, y] -= 1
    residual /= len(x)
    loss = (log_norm - scores[rows, y]).mean() + strength / 2 * (solution.weight**2).sum()
    pulled = np.einsum("mkd,mk->d", x, residual)[:, None] if options else x.T @ residual
    gradient = np.append(pulled + strength * solution.weight, [] if options else residual.sum(0))
    return float(loss), float(np.linalg.norm(gradient))


@dataclass(frozen=True, kw_only=True)
class Accuracy:
    """What solutions of a sample of problems are worth.

    Attributes:
        excess: Highest loss above the reference's, relative to it; negative when all are lower.
        gradient: Largest gradient norm, relative to its norm at the start (all weights zero).
    """

    excess: float
    gradient: float


class Judge:
    """Compares solutions of a sample of problems with a reference: the loop's own solver in float64, run to the end."""

    def __init__(self, job: Job, sample: tuple[At, ...]) -> None:
        self.job = job
        self.sample = sample
        self.best = {at: self._measure(at, self.solve(at, np.float64, REFERENCE_TOLERANCE))[0] for at in sample}

    def solve(self, at: At, dtype: type[np.floating], tol: float) -> Solution:
        """One problem by the loop's solver."""
        x, _, _ = standardised(self.job, at, dtype)
        fit = scipy_fit if self.job.options else sklearn_fit
        return fit(x, self.job.answers[self.job.train[at.fold]], STRENGTHS[at.strength], tol)

    def judge(self, solve: Callable[[At], Solution]) -> Accuracy:
        """The worst of the sample."""
        found = [(at, *self._measure(at, solve(at))) for at in self.sample]
        return Accuracy(
            excess=max((loss - self.best[at]) / self.best[at] for at, loss, _ in found),
            gradient=max(gradient for _, _, gradient in found),
        )

    def _measure(self, at: At, solution: Solution) -> tuple[float, float]:
        x, _, _ = standardised(self.job, at, np.float64)
        y, strength = self.job.answers[self.job.train[at.fold]], STRENGTHS[at.strength]
        loss, gradient = value(x, y, strength, solution)
        nothing = Solution(weight=np.zeros_like(solution.weight), bias=np.zeros_like(solution.bias))
        return loss, gradient / value(x, y, strength, nothing)[1]
