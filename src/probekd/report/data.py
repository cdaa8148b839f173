"""What the report reads: the files of a run directory as typed, frozen values."""

from __future__ import annotations

import csv
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, TypeVar

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from pydantic import TypeAdapter, ValidationError

from probekd.config import RunConfig, load_config
from probekd.errors import StoreError
from probekd.files import read_json
from probekd.targets import SoftTargets
from probekd.tasks.base import Kind

Interval = tuple[float, float]
Metric = Literal["accuracy", "nll", "brier", "ece", "macro_f1"]
T = TypeVar("T")
REWRITE = "run `probekd run` on its config.yaml again to rewrite it"


@dataclass(frozen=True, kw_only=True)
class Score:
    """Metrics of one predictor on one split, as design.md defines them."""

    accuracy: float
    accuracy_ci: Interval
    nll: float
    brier: float
    ece: float
    macro_f1: float
    n: int


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """A paired difference: the metric of ``a`` minus that of ``b`` on the same rows."""

    split: str
    a: str
    b: str
    metric: Metric
    difference: float
    ci: Interval
    p_value: float | None
    n: int


@dataclass(frozen=True, kw_only=True)
class Gate:
    """The advice given before a student was trained; ``difference`` is the probe's metric minus that of ``versus``."""

    verdict: str
    difference: float
    ci: Interval
    reason: str
    metric: Metric = "nll"
    versus: str = "teacher_output"
    accuracy_difference: float | None = None
    accuracy_ci: Interval | None = None


@dataclass(frozen=True, kw_only=True)
class Figures:
    """Out-of-fold metrics of one readout or control on the labelled rows."""

    accuracy: float
    nll: float
    ece: float | None = None
    readout: str = ""
    calibrated: bool = False


@dataclass(frozen=True, kw_only=True)
class Reader:
    """The probe that was chosen."""

    layout: str
    position: str
    depth: int
    l2: float
    temperature: float
    family: str = "logistic"
    window: int = 1


@dataclass(frozen=True, kw_only=True)
class Member:
    """One reader of a stack, or the only one."""

    layout: str
    position: str
    depths: tuple[int, ...]
    family: str
    l2: float
    weight: float


@dataclass(frozen=True, kw_only=True)
class Outlook:
    """What more labels would likely bring."""

    outlook: str


@dataclass(frozen=True, kw_only=True)
class Optimism:
    """Scores of the chosen configuration on the folds that chose it, and on rows outside them."""

    chosen_nll: float
    outside_nll: float
    chosen_accuracy: float
    outside_accuracy: float


@dataclass(frozen=True, kw_only=True)
class ProbeRecord:
    """probes/probe.json."""

    task_kind: Kind
    reader: Reader
    depths: int
    folds: int
    scored: int
    out_of_fold: Mapping[str, Figures]
    output_readouts: tuple[Figures, ...]
    optimism: Optimism
    readers: tuple[Member, ...] = ()
    words: Mapping[str, float] = field(default_factory=dict)
    calibration: str = "temperature"
    calibrated: Mapping[str, Figures] = field(default_factory=dict)
    learning_curve: Outlook | None = None
    controls: Mapping[str, Figures] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class DepthScore:
    """One row of probes/depths.csv."""

    layout: str
    position: str
    depth: int
    kind: str
    l2: float
    accuracy: float
    nll: float
    ece: float
    window: int = 1


@dataclass(frozen=True, kw_only=True)
class RunRecord:
    """run.json."""

    probekd: str
    versions: Mapping[str, str]
    seed: int
    git_commit: str | None = None
    notes: tuple[str, ...] = ()
    stages: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class Predictions:
    """Labelled rows of one predictor on one split, in the order of their ids.

    Attributes:
        ids: Row ids, n of them.
        probs: Distribution of each row, shape (k_i,).
        answers: Gold option of each row, shape (n,).
    """

    ids: tuple[str, ...]
    probs: tuple[np.ndarray, ...]
    answers: np.ndarray

    @property
    def tops(self) -> np.ndarray:
        """Most probable option of each row, shape (n,)."""
        return np.array([int(p.argmax()) for p in self.probs], dtype=int)

    @property
    def confidences(self) -> np.ndarray:
        """Probability of the most probable option, shape (n,)."""
        return np.array([float(p.max()) for p in self.probs])


@dataclass(frozen=True, kw_only=True)
class RunData:
    """Everything that the page shows, but for the texts of the rows."""

    directory: str
    config: RunConfig
    config_text: str
    run: RunRecord
    probe: ProbeRecord
    depths: tuple[DepthScore, ...]
    scores: Mapping[str, Mapping[str, Score]]
    comparisons: tuple[Comparison, ...]
    gate: Gate
    predictions: Mapping[str, Mapping[str, Predictions]]
    targets: Mapping[str, int]

    @property
    def main_split(self) -> str:
        """``test`` where it was evaluated, else the first evaluated split."""
        return "test" if "test" in self.scores else next(iter(self.scores))


def read_run(run_dir: Path) -> RunData:
    """Read a run directory.

    Raises:
        StoreError: a file is missing, damaged, or lacks a field; names the file and the field.
    """
    metrics = _json(run_dir / "metrics.json", dict[str, Any])
    where = run_dir / "metrics.json"
    scores = {k: v for k, v in metrics.items() if k not in ("comparisons", "gate")}
    if not scores:
        raise StoreError(f"{where}: no split was evaluated; {REWRITE}")
    if "gate" not in metrics:
        raise StoreError(f"{where}: the field 'gate' is missing; {REWRITE}")
    config_path = _present(run_dir / "config.yaml")
    return RunData(
        directory=run_dir.name,
        config=load_config(config_path),
        config_text=config_path.read_text(encoding="utf-8"),
        run=_json(run_dir / "run.json", RunRecord),
        probe=_json(run_dir / "probes" / "probe.json", ProbeRecord),
        depths=read_depths(run_dir / "probes" / "depths.csv"),
        scores=_typed(dict[str, dict[str, Score]], scores, where),
        comparisons=_typed(tuple[Comparison, ...], metrics.get("comparisons", []), where),
        gate=_typed(Gate, metrics["gate"], where),
        predictions=_predictions(run_dir / "predictions.parquet"),
        targets=Counter(_parquet(run_dir / "targets.parquet", SoftTargets.load).sources),
    )


def _present(path: Path) -> Path:
    if not path.is_file():
        raise StoreError(f"{path}: missing from the run directory; {REWRITE}")
    return path


def _typed(kind: type[T], value: Any, where: Path) -> T:
    try:
        return TypeAdapter(kind).validate_python(value)
    except ValidationError as error:
        problem = error.errors()[0]
        key = ".".join(str(part) for part in problem["loc"])
        raise StoreError(f"{where}: {key}: {problem['msg'].lower()}; {REWRITE}") from None


def _json(path: Path, kind: type[T]) -> T:
    return _typed(kind, read_json(_present(path)), path)


def read_depths(path: Path) -> tuple[DepthScore, ...]:
    """Rows of depths.csv; raises StoreError for a file that is missing, empty or of another form."""
    with _present(path).open(newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    if not rows:
        raise StoreError(f"{path}: no rows; {REWRITE}")
    return _typed(tuple[DepthScore, ...], rows, path)


def _parquet(path: Path, read: Callable[[Path], T]) -> T:
    try:
        return read(_present(path))
    except pa.ArrowInvalid as error:
        raise StoreError(f"{path}: not a readable parquet file ({error}); {REWRITE}") from None


def _predictions(path: Path) -> dict[str, dict[str, Predictions]]:
    table = _parquet(path, pq.read_table)
    missing = [name for name in ("id", "split", "who", "probs", "answer") if name not in table.column_names]
    if missing:
        raise StoreError(f"{path}: the column {missing[0]!r} is missing; {REWRITE}")
    grouped: dict[tuple[str, str], list[dict[str, Any]]] = {}
    for row in table.to_pylist():
        if row["answer"] >= 0:
            grouped.setdefault((row["split"], row["who"]), []).append(row)
    result: dict[str, dict[str, Predictions]] = {}
    for (split, who), rows in grouped.items():
        rows.sort(key=lambda row: str(row["id"]))
        result.setdefault(split, {})[who] = Predictions(
            ids=tuple(row["id"] for row in rows),
            probs=tuple(np.asarray(row["probs"], dtype=np.float64) for row in rows),
            answers=np.array([row["answer"] for row in rows], dtype=int),
        )
        if len({one.ids for one in result[split].values()}) > 1:
            raise StoreError(
                f"{path}: split {split}: {who} was not predicted on the same rows as the others; {REWRITE}"
            )
    return result
