"""The six stages of a run: what each one reads, makes and records."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property, partial
from itertools import combinations
from pathlib import Path
from typing import TYPE_CHECKING, Any, get_args

import numpy as np

from probekd.config import Layout, Method, RunConfig, TeacherConfig
from probekd.files import file_digest, read_json, write_json
from probekd.metrics import Scores, score
from probekd.progress import Progress
from probekd.rundir import RunDirectory
from probekd.targets import SoftTargets, softmax
from probekd.tasks import load_task_from_config
from probekd.tasks.base import Example, Task, without_questions
from probekd.tasks.variants import variant_keys
from probekd.teacher.load import Teacher, load_teacher, quiet_transformers

if TYPE_CHECKING:
    from probekd.probes.outputs import Care, OutputReadout
    from probekd.probes.probe import Probe
    from probekd.states import States


@dataclass(frozen=True)
class Run:
    """What the stages share: the directory, the config, and things that are costly to load and wanted more than once."""

    directory: RunDirectory
    config: RunConfig
    progress: Progress

    @property
    def path(self) -> Path:
        """The run directory."""
        return self.directory.path

    @cached_property
    def drawn(self) -> Task:
        """The task with its label budget, before rows are dropped for length."""
        return load_task_from_config(self.config.task, prompt=self.config.prompt, seed=self.config.seed)

    @property
    def task(self) -> Task:
        """The task without the rows that ``extract`` found too long."""
        dropped = set(self.directory.record["stages"].get("extract", {}).get("dropped", ()))
        rows = {name: tuple(e for e in rows if e.id not in dropped) for name, rows in self.drawn.splits.items()}
        return replace(self.drawn, splits=rows)

    @property
    def eval_splits(self) -> list[str]:
        """Splits to predict."""
        from probekd.evaluation.predictions import scored_splits

        return scored_splits(self.drawn, self.config.evaluate.splits)

    @cached_property
    def teacher(self) -> Teacher:
        """The loaded teacher."""
        return load_teacher(self.config.teacher)

    def teacher_for(self, *, outputs: bool) -> Teacher | TeacherConfig:
        """The loaded teacher; or its config, where it is not loaded yet and its first blocks may be enough."""
        cut = not outputs and "teacher" not in vars(self)
        return self.config.teacher if cut else self.teacher

    @cached_property
    def probe(self) -> Probe:
        """The fitted probe."""
        from probekd.probes.probe import Probe

        return Probe.load(self.path / "probes")

    @cached_property
    def outputs(self) -> dict[Care, OutputReadout]:
        """The best output readout of each care."""
        from probekd.probes.outputs import OutputReadout

        kept = read_json(self.path / "probes" / "outputs.json")
        return {care: OutputReadout.from_json(value) for care, value in kept.items()}

    def read(self, splits: Sequence[str], **what: Any) -> States:
        """Extract states and give the run directory its own hold on them."""
        from probekd.extraction import extract
        from probekd.states import link_store

        own = partial(link_store, directory=self.path / "states")
        teacher = self.teacher_for(outputs=what.get("outputs", True))
        return extract(teacher, self.task, splits=splits, progress=self.progress, claim=own, **what)

    def read_chosen(self, splits: Sequence[str], *, said: Sequence[Layout]) -> States:
        """States of what was chosen and no more: the probe's layouts, positions and depths.

        Args:
            splits: Splits to read.
            said: Layouts whose output readouts are read too; other passes end at the probe's deepest depth.
        """
        from probekd.probes.reading import passes

        found: States | None = None
        for what in passes(self.probe, self.task, said=said):
            more = self.read(splits, **what)
            found = more if found is None else found + more
        assert found is not None
        return found

    def stored(self, *stages: str) -> States:
        """States that finished stages read."""
        from probekd.states import States, StateStore

        keys = [key for stage in stages for key in self.directory.record["stages"][stage]["states"]]
        return States(tuple(StateStore.open(self.path / "states" / key) for key in keys))


def _figures(states: States | None) -> dict[str, Any]:
    stores = states.stores if states else ()
    return {
        "tokens": sum(s.manifest["tokens"] for s in stores),
        "states": [s.directory.name for s in stores],
        "state_bytes": sum(shard["bytes"] for s in stores for shard in s.manifest["shards"]),
    }


def _state_files(run: Run, states: States | None) -> list[str]:
    stores = states.stores if states else ()
    return [
        str((s.directory / name).relative_to(run.path))
        for s in stores
        for name in ("manifest.json", s.manifest["index"]["file"], *(shard["file"] for shard in s.manifest["shards"]))
    ]


def do_extract(run: Run) -> Mapping[str, Any]:
    """Read the labelled rows at every depth; check that every other row fits the teacher's context."""
    from probekd.extraction import survey_task
    from probekd.probes.folds import assign_folds, rare_notes

    kept, _ = survey_task(run.teacher, run.drawn)
    dropped = sorted({e.id for e in run.drawn.rows()} - {e.id for e in kept.rows()})
    train = kept.rows("train")
    folds = assign_folds(train, kept.kind, folds=run.config.probe.folds, seed=run.config.seed)
    run.directory.note((*kept.notes, *rare_notes(train, kept.kind, folds)))
    # Dropped rows must be known before states are read, so they go into the record of the stage that is under way.
    record = run.directory.record
    record["stages"]["extract"]["dropped"] = dropped
    write_json(run.path / "run.json", record)
    _check_student(run)
    states = run.read(("train",))
    return {**_figures(states), "dropped": dropped, "files": _state_files(run, states)}


def _check_student(run: Run) -> None:
    """Raise DataError where a row that the student will read does not fit it: before hours of work, not after."""
    from probekd.student.kinds import kind_named

    config = run.config.student
    with quiet_transformers():
        ready = kind_named(config.kind).prepare(config.model, run.task, config)
        # Validation rows watch and calibrate, whether or not the student is evaluated on them.
        ready.encode(run.task.rows(*dict.fromkeys(("train", "unlabelled", "validation", *run.eval_splits))))


def do_probe(run: Run) -> Mapping[str, Any]:
    """Fit the probe and the output readouts, and let the gate weigh them against the student alone."""
    from probekd.evaluation.gate import judge
    from probekd.probes.alone import fit_alone
    from probekd.probes.controls import reliability
    from probekd.probes.curve import learning_curve
    from probekd.probes.fit import fit_probes
    from probekd.probes.folds import rare_notes
    from probekd.probes.outputs import Care, fit_outputs
    from probekd.student import frozen_embeddings

    config = run.config
    states = run.stored("extract")
    probe = fit_probes(states, run.task, config=config.probe, seed=config.seed, progress=run.progress)
    by_id = {e.id: e for e in run.task.rows("train")}
    examples = [by_id[i] for i in probe.ids]
    readouts = {c: fit_outputs(states, examples, probe.folds, kind=run.task.kind, care=c) for c in get_args(Care)}
    outputs = readouts["calibrated"]
    embedded = frozen_embeddings(config.student.model, examples, run.task.kind, config=config.student)
    alone = fit_alone(embedded, examples, probe.folds, config.probe).honest
    probs = {
        "probe": probe.out_of_fold,
        "teacher_output": outputs.out_of_fold,
        "student_alone": [softmax(row[np.isfinite(row)]) for row in alone],
    }
    answers = probe.scored_answers.tolist()
    gate, comparisons = judge(
        probs,
        answers,
        folds=config.probe.folds,
        resamples=config.probe.bootstrap,
        seed=config.seed,
        unchecked=len(examples) - len(answers),
        groups=np.array(variant_keys(examples))[probe.scored].tolist(),
    )
    scores: dict[str, Any] = {who: dict(score(p, answers)) for who, p in probs.items()}
    scores["teacher_output"]["readout"] = outputs.name
    summary = {
        "out_of_fold": scores,
        "output_readouts": [{"readout": name, "calibrated": True, **s} for name, s in outputs.scores.items()],
        "controls": _controls(run, probe, examples),
        "comparisons": [c.as_dict() for c in comparisons],
        "gate": gate.as_dict(),
        "learning_curve": learning_curve(probe, states, examples, config=config.probe, seed=config.seed).as_dict(),
        "calibrated": reliability(probe),
        "notes": rare_notes(examples, run.task.kind, probe.folds),
    }
    probe.save(run.path / "probes", summary)
    write_json(run.path / "probes" / "outputs.json", {care: r.to_json() for care, r in readouts.items()})
    return {"files": [f"probes/{name}" for name in ("probe.json", "probe.safetensors", "depths.csv", "outputs.json")]}


def _controls(run: Run, probe: Probe, examples: Sequence[Example]) -> dict[str, Any]:
    """What a probe gets from less: no context (depth 0), no states (label prior), no labels (shuffled), no question."""
    from probekd.probes.controls import depth_zero, fit_shuffled, label_prior

    found: dict[str, Any] = {"prior": dict(label_prior(probe.answers, examples, probe.folds))}
    if (shallow := depth_zero(probe)) is not None:
        found["depth_0"] = shallow
    found["shuffled_labels"] = dict(
        fit_shuffled(probe, run.stored("extract"), examples, config=run.config.probe, seed=run.config.seed)
    )
    if run.task.kind == "multiple_choice":
        found["options_only"] = dict(_options_only(run, probe, examples))
    return found


def _options_only(run: Run, probe: Probe, examples: Sequence[Example]) -> Scores:
    """Scores of the probe's reader on prompts without their questions: what the options give away by themselves."""
    from probekd.extraction import extract
    from probekd.probes.controls import refit

    reader = probe.reader
    blind = extract(
        run.teacher_for(outputs=False),
        without_questions(run.task),
        splits=("train",),
        layouts=(reader.layout,),
        positions=(reader.position,),
        depths=(reader.depth,),
        outputs=False,
        progress=run.progress,
    )
    return refit(probe, blind, examples, probe.answers, config=run.config.probe)


def do_label(run: Run) -> Mapping[str, Any]:
    """Read the pool where the probe reads, and where a student learns from more than that; write the targets."""
    from probekd.supervision import Supervision, place_matched, words_needed

    states, pool = run.stored("extract"), None
    if run.task.rows("unlabelled"):
        pool = run.read_chosen(("unlabelled",), said=words_needed(run.config, run.outputs))
        if (place := place_matched(run.config, run.task, run.probe)) is not None:
            pool += run.read(("unlabelled",), **place.wanted)
        states += pool
    supervision = Supervision(config=run.config, task=run.task, states=states, probe=run.probe, outputs=run.outputs)
    return {**_figures(pool), "files": [*supervision.write(run.path), *_state_files(run, pool)]}


def do_distill(run: Run) -> Mapping[str, Any]:
    """Train the student and its baselines, on the same labels and the same pool."""
    from probekd.student import Student
    from probekd.supervision import students_of

    _check_student(run)
    files: list[str] = []
    key = run.directory.record["stages"]["distill"]["key"]
    for method, place in students_of(run.config).items():
        # A student that this stage finished before it was interrupted is not trained again.
        mark = run.path / ".parts" / f"{method}.json"
        if not (mark.is_file() and read_json(mark) == {"key": key, "files": _digests(run, place)}):
            _train(run, method, place)
            write_json(mark, {"key": key, "files": _digests(run, place)})
        Student.load(run.path / place, trust_remote_code=run.config.student.trust_remote_code)
        files += _digests(run, place)
    return {"files": files}


def _train(run: Run, method: Method, place: str) -> None:
    """Train one student."""
    from probekd.methods import RECIPES
    from probekd.student import distill
    from probekd.student.start import start_of
    from probekd.supervision import place_matched

    recipe, task = RECIPES[method], run.task
    if recipe.pool == "never":
        task = replace(task, splits={name: rows for name, rows in task.splits.items() if name != "unlabelled"})
    hidden = None
    if recipe.hidden:
        where = place_matched(run.config, run.task, run.probe)
        assert where is not None
        hidden = where.by_row(run.stored("extract", "label"), task.rows("train", "unlabelled"))
    blocks = run.path / ".parts" / f"{method}-start"
    with start_of(run.config, method, task, blocks, lambda: (run.probe, run.stored("extract"))) as model:
        distill(
            model,
            task,
            None if recipe.gold else _targets(run, method),
            hidden=hidden,
            config=run.config.student,
            method=method,
            output_dir=run.path / place,
            seed=run.config.seed,
            progress=run.progress,
        )


def _digests(run: Run, place: str) -> dict[str, str]:
    """Checksum of every file under a place, by name in the run directory; a card is made anew by ``complete_cards``."""
    files = sorted(f for f in (run.path / place).rglob("*") if f.is_file() and f.name != "README.md")
    return {str(f.relative_to(run.path)): file_digest(f) for f in files}


def _targets(run: Run, method: Method) -> SoftTargets:
    """A method's targets; those that a student of this run makes are made when it has been trained."""
    from probekd.methods import RECIPES
    from probekd.student import Student
    from probekd.supervision import place_of_targets, save_targets, self_training, students_of

    path = run.path / place_of_targets(run.config, method)
    if "student" in RECIPES[method].views:
        teaching = run.path / students_of(run.config)["labels"]
        student = Student.load(teaching, trust_remote_code=run.config.student.trust_remote_code)
        save_targets(path, self_training(run.task, student.predict_proba(run.task.rows("unlabelled"))))
    return SoftTargets.load(path)


def do_evaluate(run: Run) -> Mapping[str, Any]:
    """Touch the held-out rows, once: predictions of everyone, their scores, their paired differences."""
    from probekd.evaluation.paired import compare
    from probekd.evaluation.predictions import Predictions, write_predictions
    from probekd.student import Student
    from probekd.supervision import students_of

    config = run.config
    words = run.outputs["calibrated"]
    states = run.read_chosen(run.eval_splits, said=(words.layout,))
    metrics: dict[str, Any] = {}
    comparisons = []
    mine: list[Predictions] = []
    others: dict[str, list[Predictions]] = {}
    students = {
        ("student" if place == "student" else f"student:{method}"): Student.load(
            run.path / place, trust_remote_code=config.student.trust_remote_code
        )
        for method, place in students_of(config).items()
    }
    for split in run.eval_splits:
        rows = run.task.rows(split)
        ids = [e.id for e in rows]
        probs: dict[str, Sequence[np.ndarray]] = {
            "teacher_output": [softmax(x) for x in words.logits(states, ids)],
            "probe": [softmax(x) for x in run.probe.logits(states, ids)],
            **{who: student.predict_proba(rows) for who, student in students.items()},
        }
        found = {who: Predictions(who=who, split=split, examples=rows, probs=p) for who, p in probs.items()}
        metrics[split] = {who: dict(p.scores()) for who, p in found.items()}
        for who, p in found.items():
            if ":" in who:
                others.setdefault(who, []).append(replace(p, who="student"))
            else:
                mine.append(p)
        # Every two students: the gate may have advised what is a baseline here.
        for a, b in [
            ("probe", "teacher_output"),
            ("student", "teacher_output"),
            ("student", "probe"),
            *combinations((who for who in found if who.startswith("student")), 2),
        ]:
            (pa, answers), (pb, _) = found[a].labelled(), found[b].labelled()
            comparisons += compare(
                split, (a, b), (pa, pb), answers, resamples=config.evaluate.bootstrap, seed=config.seed
            )
    write_predictions(run.path / "predictions.parquet", mine)
    files = ["predictions.parquet", "metrics.json"]
    for who, predictions in others.items():
        name = f"baselines/{who.partition(':')[2]}/predictions.parquet"
        write_predictions(run.path / name, predictions)
        files.append(name)
    gate = read_json(run.path / "probes" / "probe.json")["gate"]
    write_json(run.path / "metrics.json", {**metrics, "comparisons": [c.as_dict() for c in comparisons], "gate": gate})
    return {**_figures(states), "files": files + _state_files(run, states)}


def do_report(run: Run) -> Mapping[str, Any]:
    """Write the page."""
    from probekd.report import write_report

    write_report(run.path, {e.id: e for e in run.task.rows()})
    return {"files": ["report.html"]}
