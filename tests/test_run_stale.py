"""What a run takes up again when it is resumed, and what it makes anew."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
from workspace import workspace

from probekd.cascade.teacher import open_run
from probekd.errors import StoreError
from probekd.run import STAGES, run_stages


def test_a_probe_of_another_format_is_fitted_anew(
    tmp_path: Path, model_dir: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    sizes = {"train": 18, "unlabelled": 6, "test": 9}
    made = workspace(tmp_path, "classification", teacher=model_dir("llama"), student=model_dir("bert"), sizes=sizes)
    made.write()
    done: list[tuple[str, str]] = []
    monkeypatch.setattr("probekd.probes.probe.FORMAT", 3)
    for stage in ("extract", "probe"):
        run_stages(made.load(), only=stage)
    monkeypatch.undo()
    run_stages(made.load(), only="probe", resume=True, say=lambda stage, status: done.append((stage, status)))
    assert ("probe", "done") in [(stage, status.split()[0]) for stage, status in done], done
    assert json.loads((made.run / "probes" / "probe.json").read_text())["format"] == 4


def test_what_belongs_to_another_config_is_forgotten_as_soon_as_a_stage_begins(
    tmp_path: Path, model_dir: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    sizes = {"train": 18, "unlabelled": 6, "test": 9}
    made = workspace(tmp_path, "classification", teacher=model_dir("llama"), student=model_dir("bert"), sizes=sizes)
    made.write()
    for stage in ("extract", "probe"):
        run_stages(made.load(), only=stage)
    assert open_run(made.run).probe.ids

    def killed(_: object) -> dict[str, object]:
        raise KeyboardInterrupt

    other = made.load().model_copy(update={"seed": 5})
    with monkeypatch.context() as patched, pytest.raises(KeyboardInterrupt):
        patched.setattr("probekd.run.STAGES", (replace(STAGES[0], work=killed), *STAGES[1:]))
        run_stages(other, resume=True)
    # The probe is that of the first seed's rows, and the run's config says the second.
    with pytest.raises(StoreError, match="its probe is not fitted yet"):
        open_run(made.run)


def test_stages_of_the_same_config_stay_when_an_earlier_one_is_made_again(
    tmp_path: Path, model_dir: Callable[[str], Path]
) -> None:
    sizes = {"train": 18, "unlabelled": 6, "test": 9}
    made = workspace(tmp_path, "classification", teacher=model_dir("llama"), student=model_dir("bert"), sizes=sizes)
    made.write()
    for stage in ("extract", "probe"):
        run_stages(made.load(), only=stage)
    record = json.loads((made.run / "run.json").read_text())
    name = next(iter(record["stages"]["extract"]["files"]))
    (made.run / name).unlink()
    told: list[tuple[str, str]] = []
    run_stages(made.load(), only="extract", say=lambda stage, status: told.append((stage, status.split()[0])))
    assert told[-1] == ("extract", "done") and open_run(made.run).probe.ids
