"""Where cells are made: what a study's tasks, teachers and students need is prepared once and shared."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from probekd.errors import DataError
from probekd.methods import Evidence, ViewName, views_of
from probekd.probes.folds import assign_folds
from probekd.student.kinds import kind_named
from probekd.study.config import StudyConfig, StudyStudent, teacher_label
from probekd.study.directory import StudyDirectory
from probekd.study.embeddings import embeddings_of
from probekd.study.learners import Learner, StaticLearner, TrainedLearner
from probekd.study.plan import Cell, Draw, cells, draws
from probekd.study.readings import Reading, Source, read_draw
from probekd.study.records import FORMAT
from probekd.study.universe import Universe, load_universe
from probekd.study.watcher import Watcher
from probekd.tasks.base import Task, content_hash
from probekd.teacher.load import model_fingerprint, resolve_model

# Keys of a teacher's config that decide how fast it is read, and not what it says.
SAME_STATES = {"batch_tokens", "memory", "device_map"}


@dataclass(frozen=True)
class Workshop:
    """A study's tasks, teachers and students, each prepared when it is first wanted."""

    study: StudyConfig
    directory: StudyDirectory
    watcher: Watcher
    _universes: dict[str, Universe] = field(default_factory=dict)
    _sources: dict[tuple[str, str], Source] = field(default_factory=dict)
    _learners: dict[tuple[str, str], Learner] = field(default_factory=dict)
    _models: dict[tuple[str, str | None], str] = field(default_factory=dict)

    def universe(self, task: str) -> Universe:
        """The rows of a task."""
        if task not in self._universes:
            named = {t.label: t for t in self.study.tasks}
            self._universes[task] = load_universe(named[task], self.study)
        return self._universes[task]

    def source(self, draw: Draw) -> Source:
        """A draw's teacher in front of its task."""
        place = draw.task, draw.teacher
        if place not in self._sources:
            teachers = {teacher_label(t): t for t in self.study.teachers}
            self._sources[place] = Source(self.universe(draw.task), teachers[draw.teacher], self.watcher.progress)
        return self._sources[place]

    def learner(self, task: str, student: str) -> Learner:
        """A student in front of a task."""
        if (task, student) not in self._learners:
            config = self.student(student)
            frozen = StaticLearner(
                vectors=embeddings_of(self.universe(task), config, self.directory, self.watcher.progress),
                config=config,
                search=self.study.search,
                probe=self.study.probe,
            )
            self._learners[task, student] = (
                frozen
                if config.kind == "static"
                else TrainedLearner(
                    task=self.universe(task).task,
                    config=config,
                    search=self.study.search,
                    frozen=frozen,
                    progress=self.watcher.progress,
                )
            )
        return self._learners[task, student]

    def student(self, label: str) -> StudyStudent:
        """A student's config by its name in results."""
        return {s.label: s for s in self.study.students}[label]

    def reads_options(self, task: str, student: str) -> bool:
        """Whether a student has a state for each option of a row of a task, or one for the row."""
        config = self.student(student)
        return kind_named(config.kind).prepare(config.model, self.universe(task).task, config).reads_options

    def draws(self) -> list[Draw]:
        """Every draw of the study."""
        return list(draws(self.study, {t.label: self.universe(t.label).labels for t in self.study.tasks}))

    def drawn(self, draw: Draw) -> Task:
        """The labelled rows and the pool of a draw."""
        return self.universe(draw.task).drawn(draw.budget, draw.seed)

    def cells(self, draw: Draw) -> list[Cell]:
        """The cells of a draw."""
        return cells(self.study, draw, pool_rows=self.universe(draw.task).pool_rows(draw.budget))

    def missing(self, draw: Draw) -> list[Cell]:
        """Its cells that are not made yet."""
        return [cell for cell in self.cells(draw) if not self.directory.has(cell, self.key(cell))]

    def refusal(self, draw: Draw) -> str | None:
        """Why no probe can be fitted to a draw, if none can."""
        task = self.drawn(draw)
        try:
            assign_folds(task.rows("train"), task.kind, folds=self.study.probe.folds, seed=draw.seed)
        except DataError as error:
            return str(error).split(";")[0]
        return None

    def draw_key(self, draw: Draw) -> str:
        """Hash of all that decides what a teacher says of a draw."""
        teacher = self.source(draw).teacher
        return content_hash(
            FORMAT,
            self.universe(draw.task).content,
            self._fingerprint(teacher.model, teacher.revision),
            teacher.model_dump_json(exclude={*SAME_STATES, "model", "revision"}),
            self.study.probe.model_dump_json(),
            draw.budget,
            draw.seed,
        )

    def key(self, cell: Cell) -> str:
        """Hash of all that decides what becomes of a cell."""
        if not cell.student:
            return content_hash(self.draw_key(cell.draw), cell.method)[:24]
        student = self.student(cell.student)
        return content_hash(
            self.draw_key(cell.draw),
            self._fingerprint(student.model, student.revision),
            student.model_dump_json(exclude={"model", "revision", "name"}),
            self.study.search.model_dump_json(),
            cell.method,
            cell.pool,
        )[:24]

    def _fingerprint(self, model: str, revision: str | None) -> str:
        if (model, revision) not in self._models:
            self._models[model, revision] = model_fingerprint(resolve_model(model, revision))
        return self._models[model, revision]

    def reading(self, draw: Draw) -> Reading:
        """What the teacher says of a draw; from disk where it was fitted already."""
        views = views_of(self.study.methods)
        place = self.directory.place("readings", content_hash(self.draw_key(draw), sorted(views))[:24])
        if not place.is_dir():
            read_draw(
                self.source(draw),
                self.drawn(draw),
                views=views,
                config=self.study.probe,
                seed=draw.seed,
                progress=self.watcher.progress,
            ).save(place)
        return Reading.load(place)

    def evidence(self, draw: Draw, reading: Reading) -> Evidence:
        """Rows and teacher's views of a draw."""
        by_id = {e.id: e for e in self.drawn(draw).rows("train", "unlabelled")}
        views: Mapping[ViewName, object] = reading.views
        return Evidence(
            labelled=tuple(by_id[i] for i in reading.ids),
            pool=tuple(by_id[i] for i in reading.pool),
            folds=reading.folds,
            views=dict(views),  # type: ignore[arg-type]
        )
