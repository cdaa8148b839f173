"""A tiny study from end to end: its cells, what they share, and how it goes on after it was stopped."""

from __future__ import annotations

import itertools
import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest

from probekd.errors import DataError, ModelError, StoreError
from probekd.metrics import score
from probekd.study import making, run, workshop
from probekd.study.config import StudyConfig
from probekd.study.directory import StudyDirectory
from probekd.study.learners.static import StaticLearner
from probekd.study.results import read_results
from probekd.study.run import gather_study, run_study
from probekd.study.watcher import Quiet
from probekd.study.workshop import Workshop

Build = Callable[..., StudyConfig]


def records(study: StudyConfig) -> dict[str, dict[str, Any]]:
    cells = study.directory / "work" / "cells"
    return {path.name: json.loads(path.read_text()) for path in sorted(cells.glob("*.json"))}


def test_every_cell_is_a_file_and_everything_is_gathered(tiny_study: Build) -> None:
    study = tiny_study()
    assert run_study(study) == study.directory
    found = records(study)
    # Two tasks, budgets and seeds; two readers; labels and three methods that learn from a pool, two of them without too.
    assert len(found) == 2 * 2 * 2 * (2 + 1 + 2 + 2 + 1)
    for record in found.values():
        assert record["scores"]["n"] == 15 and record["outcomes"]["rows"] == 15
    blend = next(r for r in found.values() if r["settings"]["method"] == "blend-kd" and r["settings"]["pool"] == "all")
    assert blend["pool_rows"] == 40 - blend["settings"]["budget"] and blend["validation_rows"] == 10
    assert len(blend["search"]) == 2 * 2 and blend["chosen"]["l2"] in (0.1, 1.0)
    assert min(blend["search"], key=lambda s: s["nll"])["l2"] == blend["chosen"]["l2"]
    assert 0 <= blend["target_accuracy"] <= 1 and blend["teacher_tokens"] > 0
    assert blend["gate"]["verdict"] in ("labels", "logit-kd", "probe-kd")
    table = pq.read_table(study.directory / "results.parquet")
    assert len(table) == len(found)
    l2 = {(r["method"], r["l2"]) for r in table.to_pylist()}
    assert {value for method, value in l2 if method == "blend-kd"} <= {0.1, 1.0} and ("probe", None) in l2
    assert set(table["verdict"].to_pylist()) <= {None, "labels", "logit-kd", "probe-kd"}
    text = (study.directory / "results.md").read_text()
    assert "## texts, read by" in text and "probe-kd minus labels" in text
    for r in read_results(study.directory / "results.parquet"):
        assert r.outcomes.hits.mean() == pytest.approx(r.scores["accuracy"])
        assert r.outcomes.losses.astype(float).mean() == pytest.approx(r.scores["nll"], rel=2e-3)


def test_labels_are_nested_and_the_same_for_every_method(tiny_study: Build, monkeypatch: pytest.MonkeyPatch) -> None:
    study = tiny_study(tasks=tiny_study().model_dump(mode="json")["tasks"][:1], seeds=[0])
    lessons: list[Any] = []
    original = making.Group._lesson

    def watched(self: making.Group, cell: Any) -> Any:
        lesson = original(self, cell)
        lessons.append((cell, lesson))
        return lesson

    monkeypatch.setattr(making.Group, "_lesson", watched)
    run_study(study)
    labelled = {
        budget: {
            frozenset(e.id for e in lesson.evidence.labelled) for cell, lesson in lessons if cell.draw.budget == budget
        }
        for budget in study.budgets
    }
    assert all(len(sets) == 1 for sets in labelled.values())
    assert next(iter(labelled[12])) < next(iter(labelled[24]))
    shop = Workshop(study, StudyDirectory(study.directory), Quiet())
    test = {e.id for e in shop.universe("texts").task.rows("test")}
    for _, lesson in lessons:
        pool = {e.id for e in lesson.evidence.pool}
        labels = {e.id for e in lesson.evidence.labelled}
        validation = {e.id for e in lesson.validation}
        assert not (pool & labels or pool & validation or labels & validation or (pool | labels | validation) & test)
        assert all(e.answer is None for e in lesson.evidence.pool)


def test_a_finished_study_does_nothing_and_a_larger_one_only_what_is_new(
    tiny_study: Build, monkeypatch: pytest.MonkeyPatch
) -> None:
    run_study(tiny_study(seeds=[0], budgets=[12]))
    before = records(tiny_study())
    made: list[str] = []

    class Watched(Quiet):
        def made(self, cell: Any, accuracy: float) -> None:
            made.append(cell.name)

    run_study(tiny_study(seeds=[0], budgets=[12]), watcher=Watched())
    assert made == []
    run_study(tiny_study(seeds=[0], budgets=[12, 24]), watcher=Watched())
    assert len(made) == len(before) and all("-24-0-" in name for name in made)
    after = records(tiny_study())
    assert {name: after[name] for name in before} == before
    made.clear()  # another search is another cell, but nothing is read or fitted anew
    monkeypatch.setattr("probekd.study.workshop.read_draw", lambda *a, **k: pytest.fail("the readings are there"))
    changed = tiny_study(seeds=[0], budgets=[12]).model_dump(mode="json")["search"] | {"alpha": [0.5]}
    run_study(tiny_study(seeds=[0], budgets=[12], search=changed), watcher=Watched())
    assert len(made) == len(before) - 2 * 2  # all but the readers'


def test_cells_come_back_from_the_committed_results(tiny_study: Build, monkeypatch: pytest.MonkeyPatch) -> None:
    study = tiny_study(seeds=[0], budgets=[12])
    run_study(study)
    before = records(study)
    results = (study.directory / "results.parquet").read_bytes()
    shutil.rmtree(study.directory / "work")
    monkeypatch.setattr(run, "make_cells", lambda *a: pytest.fail("every cell is in the results"))
    run_study(study)
    assert records(study) == before
    assert (study.directory / "results.parquet").read_bytes() == results


def test_nothing_that_was_computed_is_lost_by_gathering(tiny_study: Build, monkeypatch: pytest.MonkeyPatch) -> None:
    whole, part = (tiny_study(seeds=[0], budgets=budgets) for budgets in ([12, 24], [12]))
    run_study(whole)
    path = whole.directory / "results.parquet"
    results = path.read_bytes()
    cells = records(whole)

    gather_study(part)  # another config plans less
    rows = pq.read_table(path).to_pylist()
    assert len(rows) == len(cells) and {r["budget"] for r in rows if r["planned"]} == {12}
    assert "24 labels" not in (whole.directory / "results.md").read_text()

    for name in list(cells)[::2]:  # a part of the files is gone
        (whole.directory / "work" / "cells" / name).unlink()
    gather_study(whole)
    assert path.read_bytes() == results and records(whole) == cells

    shutil.rmtree(whole.directory / "work")  # a fresh clone has no files at all
    gather_study(whole)
    assert path.read_bytes() == results

    path.unlink()  # and files that no results name yet are not forgotten either
    gather_study(part)
    shutil.rmtree(whole.directory / "work")
    monkeypatch.setattr(run, "make_cells", lambda *a: pytest.fail("every cell is in the results"))
    run_study(whole)
    assert path.read_bytes() == results


def test_a_student_with_a_new_name_is_not_trained_again(tiny_study: Build, monkeypatch: pytest.MonkeyPatch) -> None:
    study = tiny_study(seeds=[0], budgets=[12])
    run_study(study)
    (study.directory / "results.parquet").unlink()
    monkeypatch.setattr(run, "make_cells", lambda *a: pytest.fail("every cell has a file, of another name"))
    named = [study.students[0].model_dump(mode="json", include={"model", "kind", "max_length"}) | {"name": "mine"}]
    run_study(tiny_study(seeds=[0], budgets=[12], students=named))
    assert {r.student for r in read_results(study.directory / "results.parquet")} == {"", "mine"}


def test_an_interrupted_study_goes_on_where_it_was(tiny_study: Build, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = tiny_study(seeds=[0], budgets=[12], name="whole")
    run_study(whole)
    study = tiny_study(seeds=[0], budgets=[12], name="stopped")
    original, calls = making.Group.record, []

    def stops(self: making.Group, cell: Any) -> Any:
        calls.append(cell.method)
        if len(calls) == 4:
            raise KeyboardInterrupt
        return original(self, cell)

    monkeypatch.setattr(making.Group, "record", stops)
    with pytest.raises(KeyboardInterrupt):
        run_study(study)
    assert len(records(study)) == 2 + 3
    run_study(study)

    def timeless(found: dict[str, dict[str, Any]]) -> dict[str, dict[str, Any]]:
        return {name: {k: v for k, v in r.items() if k != "seconds"} for name, r in found.items()}

    assert timeless(records(study)) == timeless(records(whole))


def test_draws_that_cannot_be_fitted_are_said_and_passed_over(tiny_study: Build) -> None:
    said: list[str] = []

    class Watched(Quiet):
        def refused(self, draw: Any, why: str) -> None:
            said.append(f"{draw.words}: {why}")

    study = tiny_study(seeds=[0], budgets=[4, 12])
    for work in (run_study, gather_study):
        said.clear()
        work(study, watcher=Watched())
        assert {r["settings"]["budget"] for r in records(study).values()} == {12}
        assert "too few" in (study.directory / "results.md").read_text()
        assert len(said) == 2 and said[0].startswith("texts, 4 labels, seed 0: 4 labelled rows are too few")


def test_a_study_without_a_draw_says_why(tiny_study: Build) -> None:
    for work in (run_study, gather_study):
        with pytest.raises(
            DataError, match=r"no task has 5000 labelled training rows to draw \(there are: texts 40, ch"
        ):
            work(tiny_study(budgets=[5000]))
        with pytest.raises(DataError, match=r"texts, 4 labels, seed 0: 4 labelled rows are too few .* raise budgets"):
            work(tiny_study(budgets=[4]))
    with pytest.raises(StoreError, match="no cell is made yet"):
        gather_study(tiny_study())


def test_a_held_draw_is_left_to_who_holds_it(tiny_study: Build, monkeypatch: pytest.MonkeyPatch) -> None:
    study = tiny_study(seeds=[0], budgets=[12])
    directory = StudyDirectory(study.directory)
    shop = Workshop(study, directory, Quiet())
    first, second = shop.draws()
    order: list[str] = []
    original = run.make_cells
    held = directory.held(first.name)
    assert held.__enter__()

    def watched(shop: Workshop, draw: Any) -> None:
        order.append(draw.task)
        original(shop, draw)

    def let_go(seconds: float) -> None:
        held.__exit__(None, None, None)

    monkeypatch.setattr(run, "make_cells", watched)
    monkeypatch.setattr(run.time, "sleep", let_go)
    run_study(study)
    assert order == [second.task, first.task]


def test_readers_are_scored_as_the_teacher_reads(tiny_study: Build) -> None:
    study = tiny_study(seeds=[0], budgets=[24])
    run_study(study)
    shop = Workshop(study, StudyDirectory(study.directory), Quiet())
    draw = shop.draws()[0]
    reading = shop.reading(draw)
    test = shop.universe(draw.task).task.rows("test")
    by_hand = score(
        [np.exp(z - z.max()) / np.exp(z - z.max()).sum() for z in reading.test["probe"]], [e.answer for e in test]
    )  # type: ignore[misc]
    record = next(r for name, r in records(study).items() if name.startswith(f"{draw.name}-teacher-probe"))
    assert record["scores"]["nll"] == pytest.approx(by_hand["nll"])
    assert record["out_of_fold"]["n"] == 24


def test_revisions_of_a_model_have_cells_of_their_own(tiny_study: Build, monkeypatch: pytest.MonkeyPatch) -> None:
    plain = {"model": "owner/name", "kind": "static", "max_length": 32}
    revisions = {"old": "a", "new": "b", "main": None}
    students = [{**plain, "name": name, "revision": revision} for name, revision in revisions.items()]
    study = tiny_study(seeds=[0], budgets=[12], students=students)
    original = workshop.resolve_model
    weights = {"a": "one", "b": "other", None: "other"}  # main is at b
    monkeypatch.setattr(
        workshop, "resolve_model", lambda m, r: (m, weights[r]) if m == "owner/name" else original(m, r)
    )
    fingerprint = workshop.model_fingerprint
    monkeypatch.setattr(
        workshop, "model_fingerprint", lambda found: found[1] if isinstance(found, tuple) else fingerprint(found)
    )
    shop = Workshop(study, StudyDirectory(study.directory), Quiet())
    cells = {c.student: c for c in shop.cells(shop.draws()[0]) if c.method == "labels"}
    keys = {name: shop.key(cell) for name, cell in cells.items()}
    assert keys["old"] != keys["new"] == keys["main"]


def test_mended_validation_rows_make_other_cells(tiny_study: Build, tmp_path: Path) -> None:
    """Their ids need not change with them."""
    study = tiny_study()
    before = Workshop(study=study, directory=StudyDirectory(study.directory), watcher=Quiet())
    keys = [before.key(cell) for draw in before.draws() for cell in before.cells(draw)]
    path = tmp_path / "texts-validation.csv"
    path.write_text(path.read_text().replace("the ", "a ", 1))
    after = Workshop(study=study, directory=StudyDirectory(study.directory), watcher=Quiet())
    changed = [a != b for a, b in zip((after.key(c) for d in after.draws() for c in after.cells(d)), keys, strict=True)]
    assert changed == [d.task == "texts" for d in after.draws() for _ in after.cells(d)]


def test_a_teacher_in_another_place_has_the_same_cells(tiny_study: Build, tmp_path: Path) -> None:
    study = tiny_study()
    teacher = study.teachers[0]
    moved = Path(shutil.copytree(teacher.model, tmp_path / "elsewhere" / Path(teacher.model).name))
    other = study.model_copy(update={"teachers": (teacher.model_copy(update={"model": str(moved)}),)})
    keys = []
    for one in (study, other):
        shop = Workshop(study=one, directory=StudyDirectory(study.directory), watcher=Quiet())
        keys.append([shop.key(cell) for draw in shop.draws() for cell in shop.cells(draw)])
    assert keys[0] == keys[1]


def test_what_several_cells_need_is_counted_with_each(tiny_study: Build, monkeypatch: pytest.MonkeyPatch) -> None:
    study = tiny_study(tasks=tiny_study().model_dump(mode="json")["tasks"][:1], seeds=[0], budgets=[12])
    clock = itertools.count(0, 10)
    monkeypatch.setattr(making.time, "monotonic", lambda: float(next(clock)))
    learn = StaticLearner.learn
    monkeypatch.setattr(StaticLearner, "learn", lambda *given: replace(learn(*given), steps=7))
    run_study(study)
    found = {
        (r["settings"]["method"], r["settings"]["pool"]): r for r in records(study).values() if r["settings"]["student"]
    }
    assert {r["seconds"] for (method, _), r in found.items() if method != "self-train"} == {10.0}
    assert {r["steps"] for (method, _), r in found.items() if method != "self-train"} == {7}
    # The student of the labels comes before the one that it teaches.
    assert found["self-train", "all"]["seconds"] == 20.0 and found["self-train", "all"]["steps"] == 14


def test_a_setting_that_diverges_is_passed_over(tiny_study: Build, model_dir: Callable[[str], Path]) -> None:
    student = {
        "model": str(model_dir("bert")),
        "max_length": 32,
        "epochs": 1,
        "label_epochs": 5,
        "batch_size": 4,
        "early_stopping": None,
    }
    small = {
        "tasks": tiny_study().model_dump(mode="json")["tasks"][:1],
        "seeds": [0],
        "budgets": [12],
        "methods": ["labels"],
    }
    search = {"alpha": [0.5], "temperature": [1.0], "rows": 10}
    study = tiny_study(students=[student], search={**search, "learning_rate": [1e-3, 1e38]}, **small)
    run_study(study)
    (record,) = [r for r in records(study).values() if r["settings"]["student"]]
    assert record["chosen"]["learning_rate"] == 1e-3 and len(record["search"]) == 1
    wild = tiny_study(students=[student], search={**search, "learning_rate": [1e38]}, name="wild", **small)
    with pytest.raises(ModelError, match=r"lower student\.learning_rate"):
        run_study(wild)


def test_the_gate_is_told_which_rows_are_variants(tiny_study: Build, monkeypatch: pytest.MonkeyPatch) -> None:
    judge, told = making.judge, []

    def listening(probs: Any, answers: Any, **options: Any) -> Any:
        told.append((len(answers), options["groups"]))
        return judge(probs, answers, **options)

    monkeypatch.setattr(making, "judge", listening)
    run_study(tiny_study(methods=["labels"], budgets=[12], seeds=[0]))
    assert len(told) == 2  # of either task
    for n, groups in told:
        assert len(groups) == n and len(set(groups)) > 3
