"""A run: six stages in order, each skipped when what it would make is there and valid."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from probekd.config import SAME_STUDENT, RunConfig, load_config
from probekd.errors import DataError, StoreError
from probekd.files import read_json
from probekd.metrics import Scores
from probekd.progress import Progress, Silent
from probekd.rundir import RunDirectory, stage_key
from probekd.stages import Run, do_distill, do_evaluate, do_extract, do_label, do_probe, do_report
from probekd.supervision import matches_states, method_of_targets, students_of
from probekd.tasks.base import Example, task_content
from probekd.teacher.load import model_fingerprint, resolve_model

if TYPE_CHECKING:
    from probekd.evaluation.harness import HarnessScore


@dataclass(frozen=True)
class Stage:
    """One stage: what it does, and what else than the stage before it depends on."""

    name: str
    work: Callable[[Run], Mapping[str, Any]]
    inputs: Callable[[Run], Sequence[object]]


# Keys of the teacher's config that decide how fast its states are read, and not what they are.
SAME_STATES = {"batch_tokens", "memory", "device_map"}


def _model_inputs(model: str, revision: str | None) -> str:
    return model_fingerprint(resolve_model(model, revision))


def _probe_format() -> int:
    from probekd.probes.probe import FORMAT

    return FORMAT


def _what_is_matched(config: RunConfig) -> Sequence[object]:
    """What decides which states of the pool are read to be matched, if any are."""
    return (config.student.kind, config.student.depth) if matches_states(config) else ()


def _evaluate(run: Run) -> Mapping[str, Any]:
    """Measure, and write what came of it into the cards before the stage counts as done."""
    found = do_evaluate(run)
    _complete_cards(run)
    return found


def _complete_cards(run: Run) -> None:
    from probekd.student.card import complete_cards

    complete_cards(run.path, run.config.teacher, trust_remote_code=run.config.student.trust_remote_code)


STAGES: tuple[Stage, ...] = (
    Stage(
        "extract",
        do_extract,
        lambda run: (
            task_content(run.drawn),
            run.config.teacher.model_dump_json(exclude=SAME_STATES),
            _model_inputs(run.config.teacher.model, run.config.teacher.revision),
            run.config.seed,
        ),
    ),
    Stage(
        "probe",
        do_probe,
        lambda run: (
            # What an older version left is made anew, where this one could not read it.
            _probe_format(),
            run.config.probe.model_dump_json(),
            run.config.student.max_length,
            _model_inputs(run.config.student.model, run.config.student.revision),
        ),
    ),
    Stage(
        "label",
        do_label,
        lambda run: (sorted(students_of(run.config)), run.config.student.method, *_what_is_matched(run.config)),
    ),
    Stage("distill", do_distill, lambda run: (run.config.student.model_dump_json(exclude=SAME_STUDENT),)),
    Stage("evaluate", _evaluate, lambda run: (run.config.evaluate.model_dump_json(),)),
    Stage("report", do_report, lambda run: ()),
)


def run_stages(
    config: RunConfig,
    *,
    only: str | None = None,
    resume: bool = False,
    progress: Progress | None = None,
    say: Callable[[str, str], None] = lambda stage, status: None,
) -> Path:
    """Run all stages, or ``only`` one whose predecessors are done; returns the run directory.

    Args:
        config: What to run.
        only: Name of one stage.
        resume: Go on in a directory that was made with another config.
        progress: Told how far long work is.
        say: Told each stage's name and ``skipped``, ``running`` or ``done``.

    Raises:
        ProbeKDError: the input is at fault; the message says what, where, and how to mend it.
        StoreError: with ``only``, an earlier stage is not done.
    """
    path = config.runs_dir / (config.name or "run")
    run = Run(RunDirectory(path), config, progress or Silent())
    keys = _check_inputs(run)  # before anything is written
    if only not in (None, STAGES[0].name) and not (path / "run.json").is_file():
        raise StoreError(f"{path}: there is no run yet; begin with  probekd {STAGES[0].name}, or  probekd run")
    with run.directory.locked():
        RunDirectory.prepare(config, resume=resume)
        _run_locked(run, keys, only, say)
    return path


def _check_inputs(run: Run) -> dict[str, str]:
    """Everything that can be wrong with the input and is cheap to find out; returns the key of each stage."""
    from probekd.probes.folds import assign_folds
    from probekd.student.checks import check_student

    config = run.config
    resolve_model(config.teacher.model, config.teacher.revision)
    resolve_model(config.student.model, config.student.revision)
    assign_folds(run.drawn.rows("train"), run.drawn.kind, folds=config.probe.folds, seed=config.seed)
    _ = run.eval_splits
    keys = _keys(run)
    # Students that are there already need nothing any more, such as a tracker that is not on this machine.
    if not (run.path / "run.json").is_file() or run.directory.key_of("distill") != keys["distill"]:
        check_student(config.student, run.drawn, config.probe, matching=matches_states(config))
    return keys


def _keys(run: Run) -> dict[str, str]:
    """Key of each stage."""
    keys: dict[str, str] = {}
    for stage in STAGES:
        keys[stage.name] = stage_key(stage.name, next(reversed(keys.values()), ""), *stage.inputs(run))
    return keys


def _run_locked(run: Run, keys: Mapping[str, str], only: str | None, say: Callable[[str, str], None]) -> None:
    worked = []
    for stage in STAGES:
        done = run.directory.is_done(stage.name, keys[stage.name])
        if only not in (None, stage.name):
            if done:
                continue
            raise StoreError(
                f"{run.path}: the stage {stage.name} is not done for this config; run  probekd {stage.name}  first, or  probekd run"
            )
        if done:
            say(stage.name, "skipped")
        else:
            say(stage.name, "running")
            run.directory.forget_others(keys)
            run.directory.do(stage.name, keys[stage.name], lambda stage=stage: stage.work(run))  # type: ignore[misc]
            worked.append(stage.name)
            say(stage.name, "done")
        if only is not None:
            break
    # A student that was made again has the card of one that nobody has measured.
    if "distill" in worked and run.directory.is_done("evaluate", keys["evaluate"]):
        _complete_cards(run)


def run_harness(config: RunConfig, *, progress: Progress | None = None) -> dict[str, HarnessScore]:
    """A finished run's student in lm-eval and with us, by split.

    Raises:
        ProbeKDError: see ``evaluation.harness.harness_score``.
    """
    from probekd.evaluation.harness import harness_score
    from probekd.student import Student

    run = Run(RunDirectory(config.runs_dir / (config.name or "run")), config, progress or Silent())
    trusted = config.student.trust_remote_code
    student = Student.load(run.path / "student", trust_remote_code=trusted)
    return {
        split: harness_score(student, run.task.rows(split), trust_remote_code=trusted, progress=run.progress)
        for split in run.eval_splits
    }


def export_targets(config: RunConfig, directory: Path) -> Mapping[str, int]:
    """Write a labelled run's targets as a dataset (``dataset.write_dataset``); returns its rows by split.

    Raises:
        StoreError: the directory holds something already.
    """
    from probekd.dataset import write_dataset
    from probekd.student.licence import Origin
    from probekd.targets import SoftTargets

    run = Run(RunDirectory(config.runs_dir / (config.name or "run")), config, Silent())
    targets = SoftTargets.load(run.path / "targets.parquet")
    teacher = Origin.of(config.teacher.model, config.teacher.revision)
    return write_dataset(run.task, targets, directory, teacher, method_of_targets(config))


def scores_of(path: Path) -> dict[str, dict[str, Scores]]:
    """Scores by split and predictor from a finished run's metrics.json."""
    metrics = read_json(path / "metrics.json")
    return {split: value for split, value in metrics.items() if split not in ("comparisons", "gate")}


def rows_learned(student_dir: Path) -> list[Example]:
    """The labelled rows and the pool of the run that a student's directory lies in.

    Raises:
        DataError: it lies in no run directory.
    """
    student_dir = student_dir.resolve()
    for path in student_dir.parents:
        if (path / "config.yaml").is_file() and (path / "run.json").is_file():
            config = load_config(path / "config.yaml", [f"runs_dir={path.parent}", f"name={path.name}"])
            return Run(RunDirectory(path), config, Silent()).task.rows("train", "unlabelled")
    raise DataError(f"{student_dir}: lies in no run directory; name a file of rows like those to come with --rows")
