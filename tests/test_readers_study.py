"""studies/readers.py on a tiny task and teacher: cells are made once, figures are those of the readers, and gather."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import readers
from study_rows import questions

from probekd.tasks.base import Task
from probekd.teacher.load import Teacher


@pytest.fixture
def tiny(llama: Teacher, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    task = Task(
        name="arc_easy",
        kind="multiple_choice",
        splits={"train": questions("train", 40), "test": questions("test", 14)},
        labels=(),
    )
    monkeypatch.setenv("PROBEKD_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(readers, "TEACHER", llama)
    monkeypatch.setattr(readers, "study_task", lambda _: task)
    monkeypatch.setattr(readers, "CELLS", tmp_path / "results" / "readers")
    monkeypatch.setattr(readers, "BUDGETS", (4, 30, 900))
    monkeypatch.setattr(readers, "SEEDS", (0, 1))
    for name in ("CONFIG", "FAMILIES_CONFIG"):
        smaller = {"depths": (0, 1, 2), "l2": (1.0, 10.0), "folds": 3}
        monkeypatch.setattr(readers, name, getattr(readers, name).model_copy(update=smaller))
    return tmp_path / "results"


def test_cells_are_made_once_and_gather(tiny: Path, capsys: pytest.CaptureFixture[str]) -> None:
    readers.main(["fit", "arc_easy"])
    names = sorted(path.name for path in readers.CELLS.glob("*.json"))
    assert names == [f"arc_easy-{n}-{seed}.json" for n in (30, 4) for seed in (0, 1)]  # 900 labels are not there
    few = json.loads((readers.CELLS / "arc_easy-4-0.json").read_text())
    assert "too few for 3 folds" in few["refused"]
    cell = json.loads((readers.CELLS / "arc_easy-30-0.json").read_text())
    for who in (*readers.READERS, "output"):
        assert cell[who]["held_out"]["n"] == 14 and cell[who]["out_of_fold"]["n"] == 30
    for family in ("logistic", "ridge", "mass_mean"):
        assert [r["family"] for r in cell[family]["readers"]] == [family] and cell[family]["words"] == {}
        assert len(cell[family]["readers"][0]["depths"]) == 1
    assert cell["chosen_minus_logistic"]["nll"] == pytest.approx(
        cell["chosen"]["held_out"]["nll"] - cell["logistic"]["held_out"]["nll"]
    )
    # Seven of the fourteen rows have four options, and all of those are among the first 600.
    assert cell["chosen"]["first_600_of_four"] in [pytest.approx(k / 7) for k in range(8)]

    mark = readers.CELLS / "arc_easy-30-0.json"
    mark.write_text(json.dumps({**cell, "seconds": -1.0}))
    readers.main(["fit", "arc_easy"])
    assert json.loads(mark.read_text())["seconds"] == -1.0

    readers.main(["table"])
    gathered = json.loads((tiny / "readers.json").read_text())
    (row,) = gathered["rows"]
    both = [json.loads((readers.CELLS / f"arc_easy-30-{seed}.json").read_text()) for seed in (0, 1)]
    assert row["chosen.held_out.nll"] == pytest.approx(np.mean([one["chosen"]["held_out"]["nll"] for one in both]))
    assert row["families.chosen.held_out.nll"] == both[0]["chosen"]["held_out"]["nll"]
    assert row["families.ridge.held_out.nll"] == both[0]["ridge"]["held_out"]["nll"] and "ridge" not in both[1]
    assert len(gathered["refused"]) == 2
    assert "arc_easy" in capsys.readouterr().out


def test_wrong_words_print_how_to_call_it() -> None:
    with pytest.raises(SystemExit, match="resumes"):
        readers.main(["wrong"])


def test_a_shift_between_splits_is_seen_in_words_that_learned_nothing(tiny: Path) -> None:
    readers.main(["shift", "arc_easy"])
    rows = json.loads((tiny / "shift.json").read_text())["rows"]
    assert [r["readout"].split(", ")[1] for r in rows] == ["sum", "per token", "per byte"]
    for row in rows:
        assert (row["train"]["n"], row["test"]["n"]) == (40, 14)
        assert 0 <= row["test"]["accuracy"] <= 1 and row["train"]["temperature"] > 0
        assert row["test"]["accuracy"] in [pytest.approx(k / 14) for k in range(15)]
