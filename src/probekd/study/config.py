"""A study's configuration: the grid, and the one search that every method gets."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import BeforeValidator, Field, model_validator

from probekd.config import (
    Method,
    ProbeConfig,
    PromptConfig,
    Section,
    Seed,
    StudentConfig,
    TaskConfig,
    TeacherConfig,
    apply_overrides,
    model_from_name,
    read_yaml,
    task_from_name,
    validate,
)

Pool = Annotated[int, Field(ge=0)] | Literal["all"]


class StudyTask(Section):
    """One task of a study."""

    name: str
    """A built-in task (``probekd tasks``) or the path of a task file."""
    data_dir: Path | None = None
    """As ``task.data_dir`` of a run."""
    subjects: tuple[str, ...] | None = None
    """MMLU only: the subjects to keep; None = all."""
    test: int | None = Field(default=None, ge=1)
    """At most this many test rows, chosen by hash; None = the study's own ``test``."""
    prompt: PromptConfig | None = None
    """Changes to the task's own prompt."""

    @property
    def label(self) -> str:
        """Name in results."""
        return Path(self.name).stem

    def as_run(self) -> TaskConfig:
        """The same for ``load_task_from_config``, before anything is drawn."""
        return TaskConfig(name=self.name, data_dir=self.data_dir, subjects=self.subjects)


class StudyStudent(StudentConfig):
    """A student of a study: as in a run, but for ``method`` and ``baselines``, which are the study's ``methods``."""

    kind: Literal["head", "label_token", "option_likelihood", "static"] = "head"
    """As ``student.kind`` of a run, but for ``cut``: that student is made of one run's teacher and probe."""
    name: str | None = Field(default=None, min_length=1)
    """Name in results, to tell variants of one checkpoint and kind apart; None = the checkpoint's name and the kind."""

    @model_validator(mode="before")
    @classmethod
    def _can_be_studied(cls, values: Any) -> Any:
        """First of all, since a ``cut`` student meets other rules that cannot be kept here."""
        if isinstance(values, Mapping) and values.get("kind") == "cut":
            raise ValueError(
                "kind: cut is made of one run's teacher and probe, and no study trains it; compare it in a run, with "
                "student.baselines"
            )
        return values

    @model_validator(mode="after")
    def _taught_by_the_study(self) -> Self:
        if extra := {"method", "baselines"} & self.model_fields_set:
            raise ValueError(f"remove {sorted(extra)[0]}; the study's methods say what is trained")
        if extra := {"alpha", "temperature"} & self.model_fields_set:
            raise ValueError(f"remove {sorted(extra)[0]}; the study's search says which of it are tried")
        return self

    @property
    def label(self) -> str:
        """Name in results."""
        return self.name or f"{Path(self.model).name} {self.kind}"


class SearchConfig(Section):
    """What is tried for each student, the same for every method; the lowest log-loss on validation rows chooses.

    These are rows of the task's split ``validation``, or, where it has none, training rows set aside. Neither targets nor
    students learn from them: with out-of-fold rows in their place, targets that have seen each other's answers look far
    better than they are (docs/study.md).
    """

    rows: int = Field(default=300, ge=1)
    """At most this many validation rows, and never more than there are labels."""

    alpha: tuple[Annotated[float, Field(ge=0, le=1)], ...] = Field(default=(0.0, 0.5, 1.0), min_length=1)
    """Weights of the gold label on labelled rows; with 1 the targets teach the pool alone."""
    temperature: tuple[Annotated[float, Field(gt=0, allow_inf_nan=False)], ...] = Field(
        default=(1.0, 2.0), min_length=1
    )
    """Of the targets. The student's own is fitted on the validation rows."""
    l2: tuple[Annotated[float, Field(gt=0, allow_inf_nan=False)], ...] = Field(
        default=(0.003, 0.01, 0.03, 0.1, 0.3, 1.0, 3.0), min_length=1
    )
    """``static`` students: strengths of the penalty."""
    learning_rate: (
        Annotated[tuple[Annotated[float, Field(gt=0, allow_inf_nan=False)], ...], Field(min_length=1)] | None
    ) = None
    """Students that are trained by steps; None = the student's own ``learning_rate``. Epochs are chosen by its
    ``early_stopping`` on the same rows."""


class StudyConfig(Section):
    """Tasks x teachers x label budgets x seeds, and for each of these students x pools x methods."""

    name: str | None = None
    """Name of the study's directory under ``results_dir``; None = the config file's stem."""
    results_dir: Path = Path("studies/results")
    tasks: tuple[Annotated[StudyTask, BeforeValidator(task_from_name)], ...] = Field(min_length=1)
    teachers: tuple[Annotated[TeacherConfig, BeforeValidator(model_from_name)], ...] = Field(min_length=1)
    students: tuple[Annotated[StudyStudent, BeforeValidator(model_from_name)], ...] = Field(min_length=1)
    """Students as in a run, but for ``method`` and ``baselines``, which are the study's ``methods``, and for ``cut`` ones."""
    methods: tuple[Method, ...] = Field(min_length=1)
    budgets: tuple[Annotated[int, Field(ge=1)], ...] = Field(min_length=1)
    """Label budgets; those that a task has not enough rows for are left out."""
    seeds: tuple[Seed, ...] = Field(default=(0, 1, 2), min_length=1)
    """Each draws its labelled rows, nested over the budgets and the same for every method, and starts the student."""
    pool: tuple[Pool, ...] = Field(default=(0, "all"), min_length=1)
    """Unlabelled rows that methods learn from besides, at most; methods that cannot are trained once."""
    rows: int = Field(default=1500, ge=1)
    """At most this many training rows of a task take part, labelled ones and pool together."""
    test: int | None = Field(default=3000, ge=1)
    """At most this many test rows of a task; None = all."""
    probe: ProbeConfig = ProbeConfig()
    search: SearchConfig = SearchConfig()
    bootstrap: int = Field(default=2000, ge=100)
    """Resamples of the intervals."""

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        _distinct("tasks", [task.label for task in self.tasks])
        _distinct("teachers", [teacher_label(teacher) for teacher in self.teachers])
        _distinct("students", [student.label for student in self.students], "; give each a name of its own (name)")
        if dropping := [teacher_label(t) for t in self.teachers if t.on_long == "drop"]:
            raise ValueError(
                f"teachers: {dropping[0]} has on_long: drop, and a study's rows are the same for every teacher; shorten long "
                "rows, or take them out of the task's files"
            )
        if len({student.model_dump_json(exclude={"name"}) for student in self.students}) < len(self.students):
            raise ValueError("students: two of them differ in their name alone; remove one")
        for key in ("methods", "budgets", "seeds", "pool"):
            _distinct(key, [str(value) for value in getattr(self, key)])
        idle = [] if any(self.pool) else [method for method in self.methods if _needs_pool(method)]
        if idle:
            raise ValueError(f"methods: {idle[0]} needs a pool, and there is none; leave it out, or add all to pool")
        return self

    @property
    def directory(self) -> Path:
        """Where the results go."""
        return self.results_dir / (self.name or "study")


def _distinct(key: str, names: Sequence[str], mend: str = "") -> None:
    twice = [name for name, count in Counter(names).items() if count > 1]
    if twice:
        raise ValueError(f"{key}: {twice[0]} is named twice{mend}")


def _needs_pool(method: Method) -> bool:
    from probekd.methods import RECIPES  # the schema is printed without it, and without torch

    return RECIPES[method].pool == "needed"


def teacher_label(teacher: TeacherConfig) -> str:
    """Name of a teacher in results."""
    return Path(teacher.model).name


def load_study(path: Path, overrides: Sequence[str] = ()) -> StudyConfig:
    """Read a study's YAML file, apply ``--set`` overrides, and check all of it; raises ConfigError as ``load_config``."""
    values = apply_overrides(read_yaml(path), overrides)
    values.setdefault("name", path.stem)
    return validate(StudyConfig, values, str(path))
