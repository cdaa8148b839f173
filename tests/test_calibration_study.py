"""studies/calibration.py on a tiny task and teacher: every way is another calibration of one reader, and cells are made once."""

from __future__ import annotations

import calibration as study
import numpy as np
import pytest
import readers
from study_rows import questions

from probekd.extraction import extract
from probekd.files import read_json
from probekd.metrics import log_losses
from probekd.probes.fit import CrossFitted
from probekd.progress import Silent
from probekd.targets import softmax
from probekd.tasks.base import Task
from probekd.teacher.load import Teacher


@pytest.fixture
def task(llama: Teacher, tmp_path: object, monkeypatch: pytest.MonkeyPatch) -> Task:
    made = Task(
        name="made",
        kind="multiple_choice",
        splits={"train": questions("train", 40), "test": questions("test", 14)},
        labels=(),
    )
    smaller = {"depths": (0, 1, 2), "l2": (1.0, 10.0), "folds": 3}
    monkeypatch.setenv("PROBEKD_CACHE", str(tmp_path))
    monkeypatch.setattr(study, "TEACHER", llama)
    monkeypatch.setattr(study, "study_task", lambda _: made)
    monkeypatch.setattr(study, "CONFIG", readers.CONFIG.model_copy(update=smaller))
    return made


def test_ways_differ_in_what_softens_them_alone(task: Task, llama: Teacher) -> None:
    states = extract(llama, task)
    ways = study.ways(CrossFitted.run(states, task, config=study.CONFIG, seed=0, progress=Silent()))
    assert list(ways) == ["temperature", "lapse", "luck 1.5", "luck 1"]
    plain, lapse, usual, everything = ways.values()
    assert plain.calibration.lapse == 0 < lapse.calibration.lapse
    assert lapse.flattery == 1 <= usual.flattery
    assert everything.flattery == pytest.approx(max(1, 1.5 * usual.flattery)) or usual.flattery == 1
    assert usual.uncalibrated is lapse.uncalibrated
    np.testing.assert_array_equal(usual.uncalibrated, everything.uncalibrated)


def test_cells_are_made_once(task: Task, llama: Teacher, tmp_path: object, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(study, "RESULTS", tmp_path / "calibration.json")  # type: ignore[operator]
    monkeypatch.setattr(study, "TASKS", ("made",))
    monkeypatch.setattr(study, "BUDGETS", {"made": (30,)})
    monkeypatch.setattr(study, "SEEDS", (0, 1))
    assert study.main() == 0
    cells = read_json(study.RESULTS)["cells"]
    assert [(c["task"], c["labels"], c["seed"]) for c in cells] == [("made", 30, 0), ("made", 30, 1)]
    assert all(c["ways"]["temperature"]["gain"] == 0 for c in cells)
    assert all(c["ways"][w]["held_out"]["n"] == 14 for c in cells for w in c["ways"])
    monkeypatch.setattr(study, "cell", lambda *_: pytest.fail("a cell was made again"))
    assert study.main() == 0


def test_a_gain_is_in_log_loss_on_held_out_rows(task: Task, llama: Teacher, monkeypatch: pytest.MonkeyPatch) -> None:
    states = extract(llama, task)
    found = study.cell(states, task, 30, 0)
    fitted = CrossFitted.run(
        states, task.budget(labels=30, pool=0, limit=None), config=study.CONFIG, seed=0, progress=Silent()
    )
    for name, probe in study.ways(fitted).items():
        rows = task.rows("test")
        losses = log_losses([softmax(z) for z in probe.logits(states, [e.id for e in rows])], [e.answer for e in rows])
        assert found[name]["held_out"]["nll"] == pytest.approx(losses.mean())
        assert found[name]["gain"] == pytest.approx(found["temperature"]["held_out"]["nll"] - losses.mean())
