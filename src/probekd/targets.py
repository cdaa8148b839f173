"""SoftTargets: the distribution over a row's options that a student learns from."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from probekd.errors import StoreError

SOURCES = ("oof", "pooled", "gold", "smoothed")


def softmax(logits: np.ndarray) -> np.ndarray:
    """Probabilities of one row's logits, shape (k,), in float64; -inf logits get probability 0."""
    shifted = np.exp(np.asarray(logits, dtype=np.float64) - np.max(logits))
    return np.asarray(shifted / shifted.sum())


@dataclass(frozen=True, kw_only=True)
class SoftTargets:
    """Soft labels by row; rows may have different numbers of options.

    Attributes:
        ids: Row ids.
        splits: Split of each row: train (labelled) or unlabelled.
        logits: Calibrated log-odds of each row, shape (k_i,); softmax of them is the target at temperature 1.
        sources: ``oof`` (from a probe that never saw the row), ``pooled`` (mean of the fold probes), ``gold`` (its label),
            or ``smoothed`` (its label with a share spread over the options).
        folds: Fold that the row was held out in; -1 where there is none.
    """

    ids: tuple[str, ...]
    splits: tuple[str, ...]
    logits: tuple[np.ndarray, ...]
    sources: tuple[str, ...]
    folds: tuple[int, ...]

    def __post_init__(self) -> None:
        lengths = {len(self.ids), len(self.splits), len(self.logits), len(self.sources), len(self.folds)}
        assert len(lengths) == 1, f"columns of different lengths: {lengths}"
        assert set(self.sources) <= set(SOURCES), f"unknown source among {set(self.sources)}"

    def __len__(self) -> int:
        return len(self.ids)

    @property
    def probs(self) -> list[np.ndarray]:
        """Distribution of each row, shape (k_i,)."""
        return [softmax(row) for row in self.logits]

    def by_id(self) -> dict[str, np.ndarray]:
        """Logits of each row by its id."""
        return dict(zip(self.ids, self.logits, strict=True))

    def save(self, path: Path) -> None:
        """Write the parquet file of the run-directory contract."""
        table = pa.table(
            {
                "id": pa.array(self.ids, pa.string()),
                "split": pa.array(self.splits, pa.string()),
                "probs": pa.array([p.tolist() for p in self.probs], pa.list_(pa.float64())),
                "logits": pa.array([row.tolist() for row in self.logits], pa.list_(pa.float64())),
                "source": pa.array(self.sources, pa.string()),
                "fold": pa.array(self.folds, pa.int32()),
            }
        )
        pq.write_table(table, path)

    @classmethod
    def load(cls, path: Path) -> SoftTargets:
        """Read what ``save`` wrote; raises StoreError when the file lacks a column."""
        columns = pq.read_table(path).to_pydict()
        missing = {"id", "split", "logits", "source", "fold"} - set(columns)
        if missing:
            raise StoreError(f"{path}: not a targets file: the column {sorted(missing)[0]!r} is missing")
        return cls(
            ids=tuple(columns["id"]),
            splits=tuple(columns["split"]),
            logits=tuple(np.asarray(row, dtype=np.float64) for row in columns["logits"]),
            sources=tuple(columns["source"]),
            folds=tuple(columns["fold"]),
        )


def gold_logits(answer: int, count: int) -> np.ndarray:
    """A gold label among ``count`` options in the shape of a soft one: 0 and -inf."""
    return np.where(np.arange(count) == answer, 0.0, -np.inf)


def gold_targets(ids: Sequence[str], answers: Sequence[int], counts: Sequence[int]) -> SoftTargets:
    """One-hot targets of labelled rows."""
    logits = [gold_logits(a, k) for a, k in zip(answers, counts, strict=True)]
    n = len(logits)
    return SoftTargets(
        ids=tuple(ids), splits=("train",) * n, logits=tuple(logits), sources=("gold",) * n, folds=(-1,) * n
    )


def labelled_logits(honest: np.ndarray, answers: np.ndarray, folds: np.ndarray) -> list[np.ndarray]:
    """Target logits (k_i,) of n labelled rows: out-of-fold ones, or the gold label of a row that no fold holds out.

    Args:
        honest: (m, K) of the rows with a fold, in their order; -inf beyond a row's options.
        answers: (n,) gold indices.
        folds: (n,); -1 for the only row of its class, which has all K options.
    """
    said = iter([row[np.isfinite(row)] for row in honest])
    return [next(said) if f >= 0 else gold_logits(a, honest.shape[1]) for a, f in zip(answers, folds, strict=True)]


def cross_fitted_targets(
    labelled: Sequence[str],
    logits: Sequence[np.ndarray],
    folds: Sequence[int],
    pool: Sequence[str],
    pooled: Sequence[np.ndarray],
) -> SoftTargets:
    """Out-of-fold logits for labelled rows (gold ones in fold -1: see ``labelled_logits``), the fold models' mean for the pool."""
    return SoftTargets(
        ids=(*labelled, *pool),
        splits=("train",) * len(labelled) + ("unlabelled",) * len(pool),
        logits=(*logits, *pooled),
        sources=(*("oof" if f >= 0 else "gold" for f in folds), *("pooled",) * len(pool)),
        folds=(*folds, *(-1,) * len(pool)),
    )
