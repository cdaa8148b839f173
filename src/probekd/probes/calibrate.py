"""Calibration on logits of rows that their model never saw: a temperature and a lapse, or a vector where it earns it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np
import torch
from scipy.optimize import minimize
from scipy.special import expit, softmax

# A temperature outside is a sign of logits that carry nothing; the bound keeps it finite.
MIN_BETA, MAX_BETA = 1e-3, 1e3
NEWTON_STEPS = 30
# Of the departure from one temperature: of a vector in units of the logits' own spread, of a lapse in that of log(1 / T).
VECTOR_L2 = 0.01
LAPSE_L2 = 0.01
# Where the search for a lapse begins.
FIRST_LAPSE = 0.05
# Few rows that are all right say nothing of how sharp a mean may be; 1.0 to 1.2 was seen on real states.
SHARPEST = 2.0
# Rows that a calibration is fitted to beside the given ones, like them and with every option as often the right one: without
# them the temperature of logits that never err falls to its bound, and one wrong row outside costs dear.
EVEN_ROWS = 1.0


def log_softmax(logits: np.ndarray) -> np.ndarray:
    """Log-probabilities over the last axis; -inf stays -inf."""
    return torch.log_softmax(torch.as_tensor(logits), dim=-1).numpy()


def gold_losses(logits: np.ndarray, answers: np.ndarray) -> np.ndarray:
    """Negative log-probability of the gold option: (..., n) from logits (..., n, K) and answers (n,)."""
    gold = np.broadcast_to(answers[:, None], (*logits.shape[:-1], 1))
    return np.asarray(-np.take_along_axis(log_softmax(logits), gold, axis=-1)[..., 0])


def fit_temperature(logits: np.ndarray, answers: np.ndarray, *, even_rows: float = EVEN_ROWS) -> np.ndarray:
    """Temperature that minimises the mean log-loss, for each of many sets of logits at once.

    The loss is convex in beta = 1 / T. Newton steps on log(beta), guarded by the bounds, find its minimum.

    Args:
        logits: (..., n, K), -inf for absent options.
        answers: (n,) gold indices.
        even_rows: See ``EVEN_ROWS``.

    Returns:
        (...) temperatures, float64.
    """
    z = torch.as_tensor(logits)
    present = z.isfinite()
    z = torch.where(present, z, 0.0)
    count = present.sum(-1, keepdim=True)
    # Scale first, so that one start and one set of bounds serve log-likelihoods and probe logits alike.
    z = torch.where(present, z - z.sum(-1, keepdim=True) / count, 0.0)
    spread = (z.square().sum((-1, -2)) / count.sum((-1, -2))).sqrt()
    spread = torch.where(spread > 0, spread, 1.0)
    z = z / spread[..., None, None]
    index = torch.as_tensor(answers)[:, None].expand(*z.shape[:-1], 1)
    # A row's logits have mean 0 now, which is what a row with an even answer says of it.
    said = z.gather(-1, index)[..., 0].mean(-1) * (len(answers) / (len(answers) + even_rows))
    absent = torch.where(present, 0.0, -torch.inf).to(z.dtype)
    low = torch.full_like(spread, np.log(MIN_BETA))
    high = torch.full_like(spread, np.log(MAX_BETA))
    log_beta = torch.zeros_like(spread)
    for _ in range(NEWTON_STEPS):
        beta = log_beta.exp()
        p = torch.softmax(beta[..., None, None] * z + absent, dim=-1)
        p *= z
        mean = p.sum(-1)
        slope = mean.mean(-1) - said
        curvature = (p.mul_(z).sum(-1) - mean.square()).mean(-1)
        # The sign of the slope brackets the minimum; a Newton step that leaves the bracket becomes a bisection.
        high = torch.where(slope > 0, log_beta, high)
        low = torch.where(slope <= 0, log_beta, low)
        step = log_beta - slope / (beta * curvature + slope.clamp_min(0)).clamp_min(1e-12)
        following = torch.where((step > low) & (step < high), step, (low + high) / 2)
        moved = (following - log_beta).abs().max()
        log_beta = following
        if float(moved) < 1e-5:
            break
    return (spread / log_beta.exp()).double().numpy()


@dataclass(frozen=True, kw_only=True)
class Calibration:
    """softmax(scale * logits + shift), of which a share is spread evenly over a row's options.

    One temperature: every scale is 1 / T and every shift 0.

    Attributes:
        scale: (K,).
        shift: (K,).
        lapse: Share of the rows on which the logits say nothing, however sure they are.
    """

    scale: np.ndarray
    shift: np.ndarray
    lapse: float = 0.0

    @property
    def temperature(self) -> float:
        """One over the mean scale: the temperature where there is one."""
        return float(1 / self.scale.mean())

    @property
    def kind(self) -> str:
        """``temperature``, ``temperature and lapse``, or ``vector scaling``."""
        if self.lapse:
            return "temperature and lapse"
        return "vector scaling" if self.shift.any() or (self.scale != self.scale[0]).any() else "temperature"

    def softened(self, temperature: float) -> Calibration:
        """The same with its logits divided by a temperature more."""
        return replace(self, scale=self.scale / temperature, shift=self.shift / temperature)

    def apply(self, logits: np.ndarray) -> np.ndarray:
        """Calibrated logits (..., k) of rows with k options at most K; options beyond K get the mean scale, -inf stays."""
        k = logits.shape[-1]
        scale = np.concatenate([self.scale[:k], np.full(max(0, k - len(self.scale)), self.scale.mean())])
        found = logits * scale + np.pad(self.shift[:k], (0, max(0, k - len(self.shift))))
        there = ~np.isneginf(logits)
        if self.lapse:
            with np.errstate(divide="ignore", invalid="ignore"):  # a row may have no option that was ever seen
                even = np.log(self.lapse) - np.log(there.sum(-1, keepdims=True))
                found = np.logaddexp(log_softmax(np.where(there, found, -np.inf)) + np.log1p(-self.lapse), even)
        return np.where(there, found, -np.inf)


def one_temperature(logits: np.ndarray, answers: np.ndarray) -> Calibration:
    """Calibrate (n, K) logits by a temperature."""
    k = logits.shape[1]
    return Calibration(scale=np.full(k, 1 / float(fit_temperature(logits, answers))), shift=np.zeros(k))


def vector_scaling(logits: np.ndarray, answers: np.ndarray) -> Calibration:
    """Calibrate (n, K) logits by a scale and a shift for each class (Guo et al., 1706.04599), held near one temperature.

    A penalty on the departure keeps few labels from fitting 2 K numbers to noise. Classes that are no row's answer keep to
    the temperature: that they are none may be for their having one labelled row, which is not scored.
    """
    start = one_temperature(logits, answers)
    scored, index = np.unique(answers, return_inverse=True)
    z = logits[:, scored].astype(float) * start.scale[0]
    n, k = z.shape
    target = np.eye(k)[index] + EVEN_ROWS / (n * k)

    def objective(point: np.ndarray) -> tuple[float, np.ndarray]:
        stretch, shift = point[:k], point[k:]
        logp = log_softmax(z * (1 + stretch) + shift)
        residual = (1 + EVEN_ROWS / n) * np.exp(logp) - target
        loss = -(target * logp).sum() / n + 0.5 * VECTOR_L2 * point @ point
        return loss, np.concatenate([(residual * z).mean(0), residual.mean(0)]) + VECTOR_L2 * point

    solved = _lowest(objective, np.zeros(2 * k))
    scale, shift = start.scale.copy(), start.shift.copy()
    scale[scored] *= 1 + solved[:k]
    shift[scored] = solved[k:]
    return Calibration(scale=scale, shift=shift)


def lapsing(logits: np.ndarray, answers: np.ndarray) -> Calibration:
    """Calibrate (n, K) logits by a temperature and a lapse rate, which a row's options share.

    Of a reader that is now and then sure and wrong, one temperature makes all else too modest. The lapse of psychometric
    functions (Wichmann and Hill 2001, Perception & Psychophysics 63:1293) takes the outliers on itself; where there are
    none it comes out near 0.
    """
    start = one_temperature(logits, answers)
    there = np.isfinite(logits)
    n, count = len(logits), there.sum(1, keepdims=True)
    z = np.where(there, logits.astype(float) * start.scale[0], 0.0)
    z = np.where(there, z - z.sum(1, keepdims=True) / count, 0.0)
    absent = np.where(there, 0.0, -np.inf)
    target = np.where(there, EVEN_ROWS / (n * count), 0.0)
    target[np.arange(n), answers] += 1

    def objective(point: np.ndarray) -> tuple[float, np.ndarray]:
        sharper, lapse = point[0], expit(point[1])
        p = softmax(np.exp(sharper) * z + absent, axis=1)
        mixed = np.where(there, (1 - lapse) * p + lapse / count, 1.0)
        loss = -(target * np.log(mixed)).sum() / n + 0.5 * LAPSE_L2 * sharper**2
        pull = -target / mixed / n
        along = (1 - lapse) * np.exp(sharper) * (pull * p * (z - (p * z).sum(1, keepdims=True))).sum()
        aside = lapse * (1 - lapse) * (pull * np.where(there, 1 / count - p, 0.0)).sum()
        return loss, np.array([along + LAPSE_L2 * sharper, aside])

    sharper, odds = _lowest(objective, np.array([0.0, np.log(FIRST_LAPSE / (1 - FIRST_LAPSE))]))
    return replace(start.softened(np.exp(-sharper)), lapse=float(expit(odds)))


def _lowest(objective: Callable[[np.ndarray], tuple[float, np.ndarray]], start: np.ndarray) -> np.ndarray:
    """The (m,) point where a smooth function, which gives its value and its gradient (m,), is lowest."""
    found = minimize(objective, start, jac=True, method="L-BFGS-B", options={"gtol": 1e-6, "ftol": 1e-12})
    return np.asarray(found.x)


def sharpness(each: np.ndarray, together: np.ndarray, answers: np.ndarray) -> float:
    """How many times sharper the mean of several models' logits must be made than one model's.

    A mean has less noise, so it is right more often and yet further from the corners: with the temperature of one model
    it is under-confident. The factor is the ratio of the temperatures that rows unknown to all of the models ask for.

    Args:
        each: (M, n, K) logits of M models for rows that none of them saw; -inf for absent options and unseen classes.
        together: (n, K) their mean.
        answers: (n,); rows whose answer is a class that one of the models never saw have no say.
    """
    rows = np.isfinite(each[:, np.arange(len(answers)), answers]).all(0)
    if not rows.any():
        return 1.0
    ratio = fit_temperature(each[:, rows], answers[rows]).mean() / fit_temperature(together[rows], answers[rows])
    return float(np.clip(ratio, 1, SHARPEST))


def calibrate(logits: np.ndarray, answers: np.ndarray, folds: np.ndarray, *, vector: bool = True) -> Calibration:
    """A temperature and a lapse, or vector scaling where it wins by a standard error on folds that neither was fitted to.

    Args:
        logits: (n, K) of rows that their models never saw; -inf for absent options, and for classes that were never seen.
            Rows whose gold one was never seen have no say. Where some rows lack an answer of others there is no vector.
        answers: (n,).
        folds: (n,) any fold numbers.
        vector: Whether vector scaling may be. A hundred rows of multiple choice seem to favour a place at times, which
            costs the rows to come as much as a probe gains elsewhere.
    """
    seen = np.isfinite(logits[np.arange(len(answers)), answers])
    if not seen.any():
        return Calibration(scale=np.ones(logits.shape[1]), shift=np.zeros(logits.shape[1]))
    logits, answers, folds = logits[seen], answers[seen], folds[seen]
    if not vector or not np.isfinite(logits[:, np.unique(answers)]).all():
        return lapsing(logits, answers)
    gain = np.empty(len(answers))
    for g in np.unique(folds):
        rest, held = folds != g, folds == g
        plain, scaled = (
            gold_losses(fit(logits[rest], answers[rest]).apply(logits[held]), answers[held])
            for fit in (lapsing, vector_scaling)
        )
        gain[held] = plain - scaled
    wins = gain.mean() > gain.std() / len(gain) ** 0.5
    return (vector_scaling if wins else lapsing)(logits, answers)
