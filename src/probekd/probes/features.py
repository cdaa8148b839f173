"""The states of one depth as a solver sees them: blocks of rows, standardised, small enough to work on one at a time."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Protocol

import numpy as np
import torch
from torch import Tensor

from probekd.errors import DataError

MIN_SCALE = 1e-6
# States and standardised states are each kept when they fit here, and read or made again on every pass when they do not.
KEPT_BYTES = 2**29
BLOCK_BYTES = 2**26
# Widths whose principal axes are computed in full, and how many are when they are not.
MOST_AXES, LEADING_AXES, POWER_ITERATIONS = 1024, 256, 2


class NotFiniteError(DataError):
    """A state with NaN or infinity in it.

    Attributes:
        row: Its number, from 0.
    """

    def __init__(self, row: int) -> None:
        super().__init__(f"the state of row {row}, counted from 0, holds NaN or infinity; read it again in float32")
        self.row = row


class StateBlocks(Protocol):
    """States that come block by block: what a reader of shards offers in place of one array."""

    @property
    def shape(self) -> tuple[int, ...]:
        """(n, d), or (n, k, d) for option positions."""
        ...

    def blocks(self) -> Iterator[tuple[slice, np.ndarray]]:
        """Rows in order, float32."""
        ...


@dataclass(frozen=True)
class ArrayBlocks:
    """An array in memory, cut into blocks."""

    array: np.ndarray

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of the array."""
        return self.array.shape

    def blocks(self) -> Iterator[tuple[slice, np.ndarray]]:
        """Views of the array."""
        row_bytes = self.array[:1].nbytes or 1
        step = max(1, BLOCK_BYTES // row_bytes)
        for start in range(0, len(self.array), step):
            yield slice(start, min(start + step, len(self.array))), self.array[start : start + step]


def as_blocks(states: np.ndarray | StateBlocks) -> StateBlocks:
    """Blocks of an array; blocks stay what they are."""
    return ArrayBlocks(states) if isinstance(states, np.ndarray) else states


def _read_once(source: StateBlocks) -> StateBlocks:
    """The same states in memory where they fit: every solver and every prediction passes over them."""
    if isinstance(source, ArrayBlocks) or math.prod(source.shape) * 4 > KEPT_BYTES:
        return source
    return ArrayBlocks(np.concatenate([block for _, block in source.blocks()]))


class Features:
    """Standardised features of one depth.

    A first standardisation by all rows keeps products well scaled where a state has a large mean or a few massive
    dimensions (2402.17762); it is affine and label-free, and every training set's own statistics undo it exactly.

    Args:
        states: (n, d) or (n, k, d).
        present: (n, K) bool: which classes or options a row has.
        dtype: Of all that follows.

    Attributes:
        source: The states as they came, in memory where they fit.
        options: Whether rows hold one state for each option.
        n, d, classes: Rows, width, classes or options.
        centre, spread: (d,) of the first standardisation.

    Raises:
        NotFiniteError: a state holds NaN or infinity.
    """

    def __init__(
        self, states: np.ndarray | StateBlocks, present: np.ndarray, dtype: torch.dtype = torch.float32
    ) -> None:
        self.source = _read_once(as_blocks(states))
        self.present = torch.as_tensor(present)
        self.dtype = dtype
        self.options = len(self.source.shape) == 3
        self.n, self.d = self.source.shape[0], self.source.shape[-1]
        self.classes = self.present.shape[1]
        self.centre, self.spread = self._first_moments()
        if not (self.centre.isfinite() & self.spread.isfinite()).all():
            raise NotFiniteError(self._first_not_finite())
        size = self.n * (self.classes if self.options else 1) * self.d * torch.finfo(dtype).bits // 8
        self._kept = (
            [(rows, self._standardise(rows, x)) for rows, x in self.source.blocks()] if size <= KEPT_BYTES else None
        )

    @property
    def outputs(self) -> int:
        """Scores a state gives: one for each class, or one for the option it belongs to."""
        return 1 if self.options else self.classes

    def blocks(self) -> Iterator[tuple[slice, Tensor]]:
        """Row slices and their features, (rows, d) or (rows * k, d); zero where a row has no such option."""
        if self._kept is not None:
            yield from self._kept
        else:
            for rows, x in self.source.blocks():
                yield rows, self._standardise(rows, x)

    def spread_over_states(self, row_weights: Tensor, rows: slice) -> Tensor:
        """Weights of a block's states (T, states) from weights of rows (T, n)."""
        weights = row_weights[:, rows].to(self.dtype)
        if not self.options:
            return weights
        return (weights[:, :, None] * self.present[rows].to(self.dtype)).flatten(1)

    def moments(self, train: Tensor) -> tuple[Tensor, Tensor]:
        """Mean and standard deviation (T, d) of the features over each training set (T, n); constant ones get 1."""
        total = torch.zeros(len(train), 1, dtype=self.dtype)
        first = torch.zeros(len(train), self.d, dtype=self.dtype)
        second = torch.zeros_like(first)
        for rows, x in self.blocks():
            weights = self.spread_over_states(train, rows)
            total += weights.sum(1, keepdim=True)
            first += weights @ x
            second += weights @ x**2
        mean = first / total
        # A feature may be constant in a training set and far from zero there: what rounding leaves is no variance.
        rounding = torch.finfo(self.dtype).eps * total * (second / total)
        variance = second / total - mean**2
        return mean, _scale(torch.where(variance > rounding, variance, 0.0))

    @cached_property
    def principal_axes(self) -> tuple[Tensor, Tensor, float]:
        """Axes (d, r) of the largest variance, the variances (r,), and the mean variance of the directions left.

        Over all rows; of option states, within a row's options. All that there are up to ``MOST_AXES`` dimensions;
        beyond, the leading ones by subspace iteration (Halko et al., 0909.4061), whose products with the states cost
        less than a factorisation.
        """
        if self.d <= MOST_AXES:
            variance, axes = torch.linalg.eigh(self._covariance_times(torch.eye(self.d, dtype=self.dtype)))
            there = variance > variance[-1] * torch.finfo(self.dtype).eps * self.d
            return axes[:, there], variance[there], 0.0
        axes = torch.randn(self.d, LEADING_AXES, dtype=self.dtype, generator=torch.Generator().manual_seed(0))
        for _ in range(POWER_ITERATIONS):
            axes = torch.linalg.qr(self._covariance_times(axes)).Q
        image = self._covariance_times(axes)
        variance, turn = torch.linalg.eigh(axes.T @ image)
        total = sum(float((self.centred(rows, x) ** 2).sum()) for rows, x in self.blocks()) / self.n
        variance = variance.clamp_min(0)
        return axes @ turn, variance, max(0.0, total - float(variance.sum())) / (self.d - LEADING_AXES)

    def _covariance_times(self, directions: Tensor) -> Tensor:
        out = torch.zeros(self.d, directions.shape[1], dtype=self.dtype)
        for rows, block in self.blocks():
            x = self.centred(rows, block)
            out += x.T @ (x @ directions)
        return out / self.n

    def centred(self, rows: slice, x: Tensor) -> Tensor:
        """Of option features (rows * k, d), the difference from their row's mean, a row with weight one in all."""
        if not self.options:
            return x
        there = self.present[rows].to(self.dtype)[:, :, None]
        x = x.view(-1, self.classes, self.d)
        count = there.sum(1, keepdim=True)
        centred = (x - x.sum(1, keepdim=True) / count) * there
        return (centred / count.sqrt()).view(-1, self.d)

    def _standardise(self, rows: slice, block: np.ndarray) -> Tensor:
        x = torch.as_tensor(block).to(self.dtype)
        x = x[:, : self.classes] if self.options else x
        x = (x - self.centre) / self.spread
        if self.options:
            x = (x * self.present[rows].to(self.dtype)[:, :, None]).flatten(0, 1)
        return x

    def _first_not_finite(self) -> int:
        finite = np.concatenate([np.isfinite(x).all(tuple(range(1, x.ndim))) for _, x in self.source.blocks()])
        return int(finite.argmin())

    def _first_moments(self) -> tuple[Tensor, Tensor]:
        """In float64 and relative to the first state: a mean far from zero must not swallow the variance."""
        shift: Tensor | None = None
        first = torch.zeros(self.d, dtype=torch.float64)
        second = torch.zeros(self.d, dtype=torch.float64)
        count = 0.0
        for rows, block in self.source.blocks():
            x = torch.as_tensor(block)
            there = self.present[rows] if self.options else torch.ones(len(x), dtype=torch.bool)
            x = x[:, : self.classes][there] if self.options else x
            shift = x[0].clone() if shift is None else shift
            x = x.to(torch.float64) - shift.to(torch.float64)
            first += x.sum(0)
            second += (x**2).sum(0)
            count += len(x)
        assert shift is not None, "no states"
        mean = first / count
        return (mean + shift.to(torch.float64)).to(self.dtype), _scale(second / count - mean**2).to(self.dtype)


def principal(x: Tensor) -> tuple[Tensor, Tensor]:
    """Right singular vectors (d, r) and squared singular values (r,) of x, from its smaller side."""
    if len(x) >= x.shape[1]:
        variance, axes = torch.linalg.eigh(x.T @ x)
        return axes, variance.clamp_min(0)
    variance, left = torch.linalg.eigh(x @ x.T)
    kept = variance > variance[-1] * torch.finfo(x.dtype).eps * len(x)
    return x.T @ (left[:, kept] / variance[kept].sqrt()), variance[kept]


def _scale(variance: Tensor) -> Tensor:
    scale = variance.clamp_min(0).sqrt()
    return torch.where(scale > MIN_SCALE, scale, torch.ones_like(scale))


@dataclass(frozen=True, kw_only=True)
class LinearFit:
    """Solutions for P problems at one depth, on raw (not standardised) features; problem t * S + s is training set t at strength s.

    Attributes:
        weight: (P, d, K); K = 1 for the option scorer.
        bias: (P, K); -inf for a class that a problem's training set does not have.
    """

    weight: Tensor
    bias: Tensor

    def without(self, unseen: Tensor) -> LinearFit:
        """The same, but that classes marked in (P, K) bool are never said."""
        return replace(self, bias=self.bias.masked_fill(unseen, -torch.inf))

    def logits(self, states: np.ndarray | StateBlocks) -> np.ndarray:
        """(P, n, K) float32 from (n, d), or (P, n, k) from option states (n, k, d)."""
        source = as_blocks(states)
        options = len(source.shape) == 3
        problems, d, outputs = self.weight.shape
        width = source.shape[1] if options else outputs
        out = np.empty((problems, source.shape[0], width), dtype=np.float32)
        flat = self.weight.permute(1, 0, 2).reshape(d, -1)
        for rows, block in source.blocks():
            scores = torch.as_tensor(block).to(flat.dtype) @ flat
            if options:
                out[:, rows] = (scores + self.bias[:, 0]).permute(2, 0, 1).numpy()
            else:
                out[:, rows] = (scores.view(-1, problems, outputs) + self.bias).permute(1, 0, 2).numpy()
        return out


def raw_fit(features: Features, w: Tensor, b: Tensor, mean: Tensor, scale: Tensor) -> LinearFit:
    """Undo both standardisations.

    Args:
        features: Says the first standardisation.
        w: (P, d, outputs) weights on features standardised by the training sets.
        b: (P, outputs).
        mean: (P, d) of the training sets.
        scale: (P, d).
    """
    w = w / scale[:, :, None]
    bias = b - (mean[:, :, None] * w).sum(1)
    raw = w / features.spread[None, :, None]
    return LinearFit(weight=raw, bias=bias - (features.centre[None, :, None] * raw).sum(1))


def repeat_strengths(values: Sequence[float], sets: int, dtype: torch.dtype) -> Tensor:
    """(sets * len(values),): every strength for every training set, in ``LinearFit``'s order of problems."""
    return torch.tensor(tuple(values), dtype=dtype).repeat(sets)
