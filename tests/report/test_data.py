from __future__ import annotations

import csv
from collections import defaultdict
from collections.abc import Callable
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from probekd.errors import StoreError
from probekd.report.data import read_run
from probekd.report.page import curves, headline

NewRun = Callable[..., Any]


def test_unlabelled_rows_are_left_out(new_run: NewRun) -> None:
    run = new_run(n=40)
    path = run.directory / "predictions.parquet"
    rows = pq.read_table(path).to_pylist()
    hidden = {f"t{i}" for i in range(7)}
    for row in rows:
        row["answer"] = -1 if row["id"] in hidden else row["answer"]
    pq.write_table(pa.Table.from_pylist(rows), path)
    found = read_run(run.directory).predictions["test"]["probe"]
    assert len(found.ids) == 33 and not hidden & set(found.ids)


def test_predictors_are_paired_by_id_whatever_the_order_of_the_file(new_run: NewRun) -> None:
    run = new_run("multiple_choice", 40)
    path = run.directory / "predictions.parquet"
    rows = pq.read_table(path).to_pylist()
    turned = [r for r in rows if r["who"] != "student"] + [r for r in rows[::-1] if r["who"] == "student"]
    pq.write_table(pa.Table.from_pylist(turned), path)
    data = read_run(run.directory)
    by_key = {(row["who"], row["id"]): row["probs"] for row in rows if row["split"] == "test"}
    for who, one in data.predictions["test"].items():
        assert one.ids == data.predictions["test"]["probe"].ids
        assert [p.tolist() for p in one.probs] == [by_key[who, row] for row in one.ids]


def test_a_predictor_that_lacks_a_row_is_refused(new_run: NewRun) -> None:
    run = new_run(n=40)
    path = run.directory / "predictions.parquet"
    rows = [r for r in pq.read_table(path).to_pylist() if (r["who"], r["id"]) != ("student", "t3")]
    pq.write_table(pa.Table.from_pylist(rows), path)
    with pytest.raises(StoreError, match="split test: student was not predicted on the same rows"):
        read_run(run.directory)


def test_targets_are_counted_by_source(new_run: NewRun) -> None:
    assert read_run(new_run(n=40).directory).targets == {"oof": 300, "pooled": 1200}


def test_an_unknown_metric_is_refused(new_run: NewRun) -> None:
    run = new_run(n=40)
    run.edit("metrics.json", lambda metrics: metrics["comparisons"][0].update(metric="auc"))
    with pytest.raises(StoreError, match=r"metrics\.json: 0\.metric"):
        read_run(run.directory)


def test_a_curve_takes_the_best_strength_of_each_depth_and_the_chosen_one_leads(new_run: NewRun) -> None:
    run = new_run("multiple_choice", 40)
    run.edit("probes/probe.json", lambda probe: probe["reader"].update(layout="listed", position="option_end"))
    best: dict[tuple[str, int], float] = defaultdict(lambda: 99.0)
    with (run.directory / "probes" / "depths.csv").open() as file:
        for row in csv.DictReader(file):
            key = (f"{row['layout']} · {row['position']}", int(row["depth"]))
            best[key] = min(best[key], float(row["nll"]))
    found = curves(read_run(run.directory))
    assert [c.name for c in found] == ["listed · option_end", "branched · option_mean", "listed · answer"]
    assert {(c.name, row.depth): row.nll for c in found for row in c.rows} == dict(best)
    assert len({(c.mark, c.tone) for c in found}) == 3


def test_the_headline_shows_the_strongest_rival_of_the_run_s_own_student(new_run: NewRun) -> None:
    run = new_run(n=40)
    run.edit("metrics.json", lambda metrics: metrics["test"]["student:calibrated-logit-kd"].update(accuracy=0.99))
    assert headline(read_run(run.directory)) == ["teacher_output", "probe", "student", "student:calibrated-logit-kd"]
