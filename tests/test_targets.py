from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from scipy.special import softmax as scipy_softmax

from probekd.errors import StoreError
from probekd.targets import SoftTargets, cross_fitted_targets, gold_targets, labelled_logits, softmax


@pytest.fixture
def targets() -> SoftTargets:
    return cross_fitted_targets(
        ["a", "b"],
        [np.array([0.5, -1.0, 2.0]), np.array([3.0, 1.0])],
        [1, 0],
        ["p"],
        [np.array([0.1, 0.2, 0.3, 0.4])],
    )


@pytest.mark.parametrize("scale", [1e-3, 1.0, 1e3])
def test_softmax_equals_scipy(scale: float) -> None:
    row = np.random.default_rng(0).normal(size=6) * scale
    np.testing.assert_allclose(softmax(row), scipy_softmax(row), rtol=1e-12)


def test_softmax_works_in_float64_and_gives_nothing_to_absent_options() -> None:
    probs = softmax(np.array([1.0, -np.inf, 1.0], dtype=np.float32))
    assert probs.dtype == np.float64
    assert probs.tolist() == [0.5, 0.0, 0.5]


def test_cross_fitted_targets_keep_rows_sources_and_folds_together(targets: SoftTargets) -> None:
    assert targets.ids == ("a", "b", "p")
    assert targets.splits == ("train", "train", "unlabelled")
    assert targets.sources == ("oof", "oof", "pooled")
    assert targets.folds == (1, 0, -1)
    assert len(targets) == 3
    assert {i: row.tolist() for i, row in targets.by_id().items()} == {
        "a": [0.5, -1.0, 2.0],
        "b": [3.0, 1.0],
        "p": [0.1, 0.2, 0.3, 0.4],
    }


def test_rows_that_no_fold_holds_out_have_their_gold_label_and_say_so() -> None:
    honest = np.array([[0.5, -1.0, 2.0], [3.0, 1.0, -np.inf]])
    folds = np.array([1, -1, 0])
    logits = labelled_logits(honest, np.array([2, 1, 0]), folds)
    found = cross_fitted_targets(["a", "b", "c"], logits, folds.tolist(), ["p"], [np.zeros(3)])
    assert (found.sources, found.folds) == (("oof", "gold", "oof", "pooled"), (1, -1, 0, -1))
    assert [row.tolist() for row in found.logits[:3]] == [[0.5, -1.0, 2.0], [-np.inf, 0.0, -np.inf], [3.0, 1.0]]
    assert found.probs[1].tolist() == [0, 1, 0]


def test_gold_targets_are_one_hot_over_each_rows_own_options() -> None:
    gold = gold_targets(["a", "b"], [2, 0], [3, 5])
    assert [p.tolist() for p in gold.probs] == [[0, 0, 1], [1, 0, 0, 0, 0]]
    assert (gold.splits, gold.sources, gold.folds) == (("train",) * 2, ("gold",) * 2, (-1, -1))


def test_saved_file_has_the_columns_of_the_contract(targets: SoftTargets, tmp_path: Path) -> None:
    targets.save(tmp_path / "targets.parquet")
    rows = pq.read_table(tmp_path / "targets.parquet").to_pylist()
    assert list(rows[0]) == ["id", "split", "probs", "logits", "source", "fold"]
    for row, logits in zip(rows, targets.logits, strict=True):
        assert row["logits"] == logits.tolist()
        assert row["probs"] == pytest.approx(scipy_softmax(logits))
        assert sum(row["probs"]) == pytest.approx(1.0)


@pytest.mark.parametrize("kind", ["soft", "gold"])
def test_loading_gives_back_what_was_saved(kind: str, targets: SoftTargets, tmp_path: Path) -> None:
    saved = targets if kind == "soft" else gold_targets(["a", "b"], [1, 0], [2, 3])
    saved.save(tmp_path / "targets.parquet")
    loaded = SoftTargets.load(tmp_path / "targets.parquet")
    assert (loaded.ids, loaded.splits, loaded.sources, loaded.folds) == (
        saved.ids,
        saved.splits,
        saved.sources,
        saved.folds,
    )
    assert [row.tolist() for row in loaded.logits] == [row.tolist() for row in saved.logits]


@pytest.mark.parametrize("column", ["id", "split", "logits", "source", "fold"])
def test_a_file_without_a_needed_column_is_refused_by_name(column: str, targets: SoftTargets, tmp_path: Path) -> None:
    path = tmp_path / "targets.parquet"
    targets.save(path)
    pq.write_table(pq.read_table(path).drop_columns([column]), path)
    with pytest.raises(StoreError, match=rf"targets.parquet: not a targets file: the column '{column}' is missing"):
        SoftTargets.load(path)


def test_an_empty_parquet_file_is_refused(tmp_path: Path) -> None:
    pq.write_table(pa.table({"x": [1]}), tmp_path / "x.parquet")
    with pytest.raises(StoreError, match="not a targets file"):
        SoftTargets.load(tmp_path / "x.parquet")


def test_columns_of_different_lengths_are_a_bug() -> None:
    with pytest.raises(AssertionError, match="different lengths"):
        SoftTargets(ids=("a", "b"), splits=("train",), logits=(), sources=(), folds=())


def test_an_unknown_source_is_a_bug() -> None:
    with pytest.raises(AssertionError, match="unknown source"):
        SoftTargets(ids=("a",), splits=("train",), logits=(np.zeros(2),), sources=("in-sample",), folds=(0,))
