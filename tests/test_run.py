from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
from workspace import LABELS, Workspace, classification_rows, workspace

from probekd.config import RunConfig
from probekd.errors import ConfigError, StoreError
from probekd.run import STAGES, run_stages, scores_of
from probekd.rundir import RunDirectory
from probekd.teacher.load import cache_dir

STAGE_NAMES = [stage.name for stage in STAGES]
SHARED = Path(os.environ.get("PROBEKD_SHARED", Path(__file__).parents[2] / "shared"))
# Times are in run.json and in the manifests, the place of the run is in config.yaml, and the page shows both.
VARYING = {"run.json", "manifest.json", "config.yaml", "report.html", ".lock"}


@pytest.fixture(scope="session")
def finished(
    tmp_path_factory: pytest.TempPathFactory, model_dir: Callable[[str], Path]
) -> Iterator[Callable[[str, str], Workspace]]:
    """The workspace of a kind of task and a teacher, run to its end once; tests take copies of it."""

    def make(kind: str, teacher: str) -> Workspace:
        root = tmp_path_factory.mktemp(f"{kind}-{teacher}")
        made = workspace(root, kind, teacher=model_dir(teacher), student=model_dir("bert"))
        with pytest.MonkeyPatch.context() as patch:
            patch.setenv("PROBEKD_CACHE", str(root / "cache"))
            run_stages(made.load())
        return made

    yield cache(make)


@pytest.fixture
def copied(finished: Callable[[str, str], Workspace], tmp_path: Path) -> Callable[..., RunConfig]:
    """The config of a copy of the finished classification run, and its overrides."""
    source = finished("classification", "llama")
    shutil.copytree(source.run, tmp_path / "runs" / "cfg")

    def config(*overrides: str) -> RunConfig:
        return source.load(f"runs_dir={tmp_path / 'runs'}", *overrides)

    return config


@pytest.fixture
def fresh(tmp_path: Path, model_dir: Callable[[str], Path]) -> Callable[..., Workspace]:
    """A new workspace with the same rows, in a directory of a name."""

    def make(name: str, **changes: Any) -> Workspace:
        models = {"teacher": model_dir("llama"), "student": model_dir("bert")}
        return workspace(tmp_path / name, "classification", **models, **changes)

    return make


def run_watched(config: RunConfig, **options: Any) -> list[str]:
    """Run; returns the stages that did work."""
    worked: list[str] = []

    def say(stage: str, status: str) -> None:
        if status == "running":
            worked.append(stage)

    run_stages(config, say=say, **options)
    return worked


def contents(run: Path) -> dict[str, bytes]:
    """Bytes of every file that must come out the same, by name."""
    return {str(f.relative_to(run)): f.read_bytes() for f in run.rglob("*") if f.is_file() and f.name not in VARYING}


def times(run: Path) -> dict[Path, int]:
    return {f: f.stat().st_mtime_ns for f in run.rglob("*") if f.is_file()}


def flip(path: Path) -> None:
    """Flip one bit in the middle of a file; its size stays."""
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.unlink()  # a hard link elsewhere must keep the old bytes
    path.write_bytes(data)


def chosen(run: Path) -> tuple[Any, list[Any]]:
    reader = json.loads((run / "probes" / "probe.json").read_text())["reader"]
    return reader, pq.read_table(run / "targets.parquet").to_pylist()


@pytest.mark.parametrize(
    ("kind", "teacher"), [("classification", "llama"), ("multiple_choice", "llama"), ("classification", "bert")]
)
def test_a_finished_run_keeps_the_contract(finished: Callable[[str, str], Workspace], kind: str, teacher: str) -> None:
    script = SHARED / "checks" / "run_contract.py"
    if not script.is_file():
        pytest.skip(f"{script} is not here; PROBEKD_SHARED names its directory")
    run = finished(kind, teacher).run
    done = subprocess.run([sys.executable, script, run], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout.strip()) == (0, "the contract holds"), done.stdout + done.stderr


@pytest.mark.parametrize(
    ("kind", "teacher"), [("classification", "llama"), ("multiple_choice", "llama"), ("classification", "bert")]
)
def test_a_finished_run_holds_every_row_once(
    finished: Callable[[str, str], Workspace], kind: str, teacher: str
) -> None:
    made = finished(kind, teacher)
    targets = pq.read_table(made.run / "targets.parquet").to_pylist()
    options = {row["id"]: len(row.get("options", LABELS)) for rows in made.rows.values() for row in rows}
    wanted = sorted(row["id"] for split in ("train", "unlabelled") for row in made.rows[split])
    assert sorted(t["id"] for t in targets) == wanted
    assert all(len(t["probs"]) == options[t["id"]] for t in targets)
    assert {t["source"] for t in targets if t["split"] == "train"} == {"oof"}
    assert {t["source"] for t in targets if t["split"] == "unlabelled"} == {"pooled"}
    predictions = pq.read_table(made.run / "predictions.parquet").to_pylist()
    tested = sorted(row["id"] for row in made.rows["test"])
    for who in ("teacher_output", "probe", "student"):
        assert sorted(p["id"] for p in predictions if p["who"] == who) == tested
    # Every two students are compared: what the gate advises may be a baseline.
    compared = json.loads((made.run / "metrics.json").read_text())["comparisons"]
    assert {"student:labels", "student:calibrated-logit-kd"} in [{c["a"], c["b"]} for c in compared]
    assert set(scores_of(made.run)["test"]) == {
        "teacher_output",
        "probe",
        "student",
        "student:labels",
        "student:calibrated-logit-kd",
    }


@pytest.mark.parametrize("kind", ["classification", "multiple_choice"])
def test_the_probe_says_what_it_is_worth(finished: Callable[[str, str], Workspace], kind: str) -> None:
    made = finished(kind, "llama")
    probe = json.loads((made.run / "probes" / "probe.json").read_text())
    labelled = probe["labelled"]
    assert set(probe["controls"]) == {"prior", "depth_0", "shuffled_labels"} | (
        {"options_only"} if kind == "multiple_choice" else set()
    )
    assert all(control["n"] == labelled for control in probe["controls"].values())
    for one in probe["calibrated"].values():
        bins = one["bins"]
        gaps = [n * abs(c - a) for n, c, a in zip(bins["n"], bins["confidence"], bins["accuracy"], strict=True)]
        assert sum(bins["n"]) == labelled and sum(gaps) / labelled == pytest.approx(one["ece"])
    assert probe["calibrated"]["after"]["nll"] <= probe["calibrated"]["before"]["nll"] + 1e-6
    assert probe["optimism"]["chosen_nll"] == probe["calibrated"]["after"]["nll"]
    assert probe["learning_curve"]["outlook"]


def test_each_stage_reads_its_own_rows_only(finished: Callable[[str, str], Workspace]) -> None:
    run = finished("classification", "llama").run
    stages = json.loads((run / "run.json").read_text())["stages"]
    read = {
        stage: {json.loads((run / "states" / key / "manifest.json").read_text())["split"] for key in entry["states"]}
        for stage, entry in stages.items()
        if "states" in entry
    }
    assert read == {"extract": {"train"}, "label": {"unlabelled"}, "evaluate": {"test"}}


def test_a_second_run_does_nothing(copied: Callable[..., RunConfig]) -> None:
    config = copied()
    before = times(config.runs_dir / "cfg" / "states"), contents(config.runs_dir / "cfg")
    stamps = {f: t for f, t in times(config.runs_dir / "cfg").items() if f.name not in ("config.yaml", ".lock")}
    assert run_watched(config) == []
    assert (times(config.runs_dir / "cfg" / "states"), contents(config.runs_dir / "cfg")) == before
    now = times(config.runs_dir / "cfg")
    assert {f: now[f] for f in stamps} == stamps
    assert set(now) - set(stamps) == {config.runs_dir / "cfg" / n for n in ("config.yaml", ".lock")}


DAMAGES = {
    "probes/probe.json": "probe",
    "probes/probe.safetensors": "probe",
    "probes/depths.csv": "probe",
    "targets.parquet": "label",
    "baselines/calibrated-logit-kd/targets.parquet": "label",
    "student/model.safetensors": "distill",
    "student/config.json": "distill",
    "baselines/labels/student/model.safetensors": "distill",
    "predictions.parquet": "evaluate",
    "metrics.json": "evaluate",
    "report.html": "report",
}


@pytest.mark.parametrize("damage", [Path.unlink, flip], ids=["deleted", "flipped"])
@pytest.mark.parametrize(("name", "stage"), DAMAGES.items(), ids=list(DAMAGES))
def test_a_damaged_artefact_is_made_again_as_it_was(
    copied: Callable[..., RunConfig], name: str, stage: str, damage: Callable[[Path], None]
) -> None:
    config = copied()
    run = config.runs_dir / "cfg"
    before = contents(run)
    damage(run / name)
    assert run_watched(config) == [stage]
    assert contents(run) == before
    assert run_watched(config) == []


@pytest.mark.parametrize("damage", [Path.unlink, flip], ids=["deleted", "flipped"])
@pytest.mark.parametrize("file", ["manifest.json", "index.parquet", "shard-00000.safetensors"])
@pytest.mark.parametrize("stage", ["extract", "label", "evaluate"])
def test_damaged_states_are_read_again(
    copied: Callable[..., RunConfig], stage: str, file: str, damage: Callable[[Path], None]
) -> None:
    config = copied()
    run = config.runs_dir / "cfg"
    before = contents(run)
    key = json.loads((run / "run.json").read_text())["stages"][stage]["states"][0]
    damage(run / "states" / key / file)
    assert run_watched(config) == [stage]
    assert contents(run) == before
    assert run_watched(config) == []


def test_states_that_are_damaged_in_the_cache_too_are_named(copied: Callable[..., RunConfig]) -> None:
    config = copied("runs_dir=" + str(copied().runs_dir.parent / "other"))
    run_stages(config, only="extract")
    run = config.runs_dir / "cfg"
    key = json.loads((run / "run.json").read_text())["stages"]["extract"]["states"][0]
    shard = run / "states" / key / "shard-00000.safetensors"
    damaged = bytearray(shard.read_bytes())
    damaged[-1] ^= 1
    with shard.open("r+b") as file:  # in place, so that the link in the cache has it too
        file.write(damaged)
    with pytest.raises(StoreError, match=rf"{key} is damaged \(shard-00000.safetensors\); remove this directory"):
        run_stages(config)
    shutil.rmtree(cache_dir() / "states" / key)
    assert run_watched(config, only="extract") == ["extract"]
    assert shard.read_bytes() != damaged


def test_what_a_killed_process_was_writing_is_swept_away(copied: Callable[..., RunConfig]) -> None:
    config = copied()
    run = config.runs_dir / "cfg"
    (run / ".metrics.json.0123abcd.tmp").write_text("{")
    (run / "states" / ".key.0123abcd.tmp").mkdir()
    (run / "states" / ".key.0123abcd.tmp" / "index.parquet").write_bytes(b"PAR1")
    assert run_watched(config) == []
    assert not list(run.rglob("*.tmp"))


def test_cards_are_complete_before_evaluate_is_done(
    copied: Callable[..., RunConfig], monkeypatch: pytest.MonkeyPatch
) -> None:
    config = copied("evaluate.bootstrap=150")
    run = config.runs_dir / "cfg"

    def killed(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr("probekd.student.card.complete_cards", killed)
        with pytest.raises(KeyboardInterrupt):
            run_stages(config, resume=True)
    assert RunDirectory(run).record["stages"]["evaluate"]["status"] != "done"
    run_stages(config, resume=True)
    assert "| **this student** |" in (run / "student" / "README.md").read_text()


def test_a_directory_that_was_killed_before_its_record_is_taken_up(copied: Callable[..., RunConfig]) -> None:
    config = copied("student.epochs=2")
    run = config.runs_dir / "cfg"
    for name in ("run.json", "metrics.json"):
        (run / name).unlink()
    RunDirectory.prepare(config)
    assert RunDirectory(run).record["stages"] == {} and "epochs: 2.0" in (run / "config.yaml").read_text()


def test_another_config_is_refused_with_what_differs(copied: Callable[..., RunConfig]) -> None:
    config = copied("student.epochs=2", "probe.folds=4")
    before = times(config.runs_dir / "cfg")
    with pytest.raises(ConfigError) as refusal:
        run_stages(config)
    assert "probe.folds: 3 -> 4" in str(refusal.value)
    assert "student.epochs: 1.0 -> 2.0" in str(refusal.value)
    assert str(refusal.value).count(" -> ") == 2
    assert "--resume" in str(refusal.value)
    assert {f: t for f, t in times(config.runs_dir / "cfg").items() if f.name != ".lock"} == {
        f: t for f, t in before.items() if f.name != ".lock"
    }


@pytest.mark.parametrize(
    ("override", "first"),
    [
        ("teacher.batch_tokens=512", None),
        ("evaluate.bootstrap=150", "evaluate"),
        ("student.learning_rate=0.001", "distill"),
        ("probe.l2=[0.3]", "probe"),
        ("prompt.instruction=Say what it is.", "extract"),
    ],
)
def test_resume_does_again_what_depends_on_the_change(
    copied: Callable[..., RunConfig], override: str, first: str | None
) -> None:
    config = copied(override)
    wanted = STAGE_NAMES[STAGE_NAMES.index(first) :] if first else []
    assert run_watched(config, resume=True) == wanted
    assert run_watched(config) == []


def test_stages_one_by_one_make_the_same_files(
    finished: Callable[[str, str], Workspace], copied: Callable[..., RunConfig], tmp_path: Path
) -> None:
    config = copied(f"runs_dir={tmp_path / 'single'}")
    for stage in STAGE_NAMES:
        assert run_watched(config, only=stage) == [stage]
    assert contents(tmp_path / "single" / "cfg") == contents(finished("classification", "llama").run)
    assert run_watched(config) == []


def test_a_stage_wants_its_predecessors(copied: Callable[..., RunConfig], tmp_path: Path) -> None:
    config = copied(f"runs_dir={tmp_path / 'single'}")
    with pytest.raises(StoreError, match="there is no run yet; begin with  probekd extract"):
        run_stages(config, only="label")
    assert not (tmp_path / "single").exists()
    run_stages(config, only="extract")
    with pytest.raises(StoreError, match="the stage probe is not done for this config; run  probekd probe"):
        run_stages(config, only="label")


def test_a_directory_is_worked_in_by_one_process(copied: Callable[..., RunConfig]) -> None:
    from probekd.rundir import RunDirectory

    config = copied()
    with (
        RunDirectory(config.runs_dir / "cfg").locked(),
        pytest.raises(StoreError, match="another process is working in"),
    ):
        run_stages(config)


def test_answers_of_the_pool_are_never_seen(
    finished: Callable[[str, str], Workspace], fresh: Callable[..., Workspace]
) -> None:
    """The pool's answers are in the file; other answers there must change nothing."""
    other = fresh("other")
    for row in other.rows["unlabelled"]:
        row["answer"] = LABELS[(LABELS.index(row["answer"]) + 1) % len(LABELS)]
    run_stages(other.load(), only="extract")
    run_stages(other.load(), only="probe")
    run_stages(other.load(), only="label")
    assert chosen(other.run) == chosen(finished("classification", "llama").run)


def test_further_test_rows_change_no_choice(
    finished: Callable[[str, str], Workspace], fresh: Callable[..., Workspace]
) -> None:
    more = fresh("more")
    more.rows["test"] += classification_rows("more", 25, seed=9)
    run_stages(more.load())
    before = finished("classification", "llama")
    assert chosen(more.run) == chosen(before.run)
    gates = [json.loads((run / "metrics.json").read_text())["gate"] for run in (more.run, before.run)]
    assert gates[0] == gates[1]
    assert (more.run / "student" / "model.safetensors").read_bytes() == (
        before.run / "student" / "model.safetensors"
    ).read_bytes()
    assert scores_of(more.run)["test"]["student"]["n"] == 65


def test_without_a_student_of_outputs_the_pool_is_read_no_deeper_than_the_probe(
    tmp_path: Path, model_dir: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    from probekd.run import run_stages
    from probekd.states import StateStore
    from probekd.teacher import load as load_module

    made = workspace(tmp_path / "w", "classification", teacher=model_dir("llama"), student=model_dir("bert"))
    made.config["student"]["baselines"] = ["labels"]
    made.config["probe"]["depths"] = [0, 1]
    made.write()
    config = made.load()
    for stage in ("extract", "probe"):
        run_stages(config, only=stage)
    loaded: list[int | None] = []
    load = load_module.load_teacher
    monkeypatch.setattr(
        "probekd.extraction.stores.load_teacher",
        lambda teacher, depth=None: (loaded.append(depth), load(teacher, depth=depth))[1],
    )
    monkeypatch.setattr("probekd.stages.load_teacher", lambda *_: pytest.fail("the whole teacher was loaded"))
    run_stages(config, only="label")
    assert loaded and all(depth is not None and depth <= 1 for depth in loaded)
    assert not (made.run / "baselines" / "calibrated-logit-kd").exists()
    record = json.loads((made.run / "run.json").read_text())["stages"]["label"]
    for key in record["states"]:
        store = StateStore.open(made.run / "states" / key)
        assert store.manifest["outputs"] == [] and max(store.depths) <= 1


def test_labels_with_one_row_and_with_none_go_through_every_stage(fresh: Callable[..., Workspace]) -> None:
    made = fresh("rare")
    made.task["labels"] = [*LABELS, "plant"]
    only, *others = [row for row in made.rows["train"] if row["answer"] == "tool"]
    for row in others:
        row["answer"] = "food"
    run_stages(made.load())
    script = SHARED / "checks" / "run_contract.py"
    if script.is_file():
        done = subprocess.run([sys.executable, script, made.run], capture_output=True, text=True, check=False)
        assert (done.returncode, done.stdout.strip()) == (0, "the contract holds"), done.stdout + done.stderr
    for name in ("targets.parquet", "baselines/calibrated-logit-kd/targets.parquet"):
        targets = {row["id"]: row for row in pq.read_table(made.run / name).to_pylist()}
        assert [i for i, row in targets.items() if row["source"] == "gold"] == [only["id"]]
        assert (targets[only["id"]]["fold"], targets[only["id"]]["probs"]) == (-1, [0.0, 0.0, 1.0, 0.0])
        assert {row["source"] for row in targets.values()} == {"gold", "oof", "pooled"}
    probe = json.loads((made.run / "probes" / "probe.json").read_text())
    run = json.loads((made.run / "run.json").read_text())
    page = (made.run / "report.html").read_text()
    for words in (
        "1 labelled row(s) are all that 1 of 4 labels (&#39;tool&#39;)",
        "1 of 4 labels (&#39;plant&#39;) have no",
    ):
        assert words in page
        assert any(words.replace("&#39;", "'") in note for note in probe["notes"])
        assert any(words.replace("&#39;", "'") in note for note in run["notes"])
    assert (probe["labelled"], probe["scored"], probe["gate"]["n"]) == (60, 59, 59)
    assert "on 59 of 60 labelled rows (the other 1 are the only ones of their label)" in probe["gate"]["reason"]
    assert {s["n"] for s in (*probe["out_of_fold"].values(), *probe["controls"].values())} == {59}
    predictions = pq.read_table(made.run / "predictions.parquet").to_pylist()
    plant = [row["probs"][3] for row in predictions if row["who"] == "probe"]
    assert plant == pytest.approx([1 / 62] * len(plant), rel=1e-6)
