"""What can be wrong with a study's students, found before the teacher reads anything: hours later it would be dear."""

from __future__ import annotations

from collections.abc import Sequence

from probekd.config import ProbeConfig, StudentConfig
from probekd.errors import ConfigError, DataError
from probekd.methods import RECIPES
from probekd.student.inputs import Encoded
from probekd.student.kinds import StudentKind, kind_named
from probekd.student.kinds.static import Static
from probekd.student.objective import HiddenMatch
from probekd.study.plan import Draw
from probekd.study.universe import Universe
from probekd.study.workshop import Workshop
from probekd.tasks.base import Example, Kind
from probekd.teacher.load import quiet_transformers


def check_students(shop: Workshop, draws: Sequence[Draw]) -> None:
    """Load every student of the cells that are missing in some draws, and show it the rows of its tasks.

    Raises:
        ConfigError: a method that a student cannot learn by.
        DataError: a row that does not fit a student.
        ModelError: a checkpoint that cannot be used.
    """
    missing = [cell for draw in draws for cell in shop.missing(draw) if cell.student]
    for task, student in dict.fromkeys((cell.draw.task, cell.student) for cell in missing):
        methods = {cell.method for cell in missing if (cell.draw.task, cell.student) == (task, student)}
        shop.watcher.began(f"{task}: does {student} fit?")
        kind, rows = _rehearse(
            shop.universe(task), shop.student(student), where=f"study task {task}, student {student}"
        )
        if any(RECIPES[method].hidden for method in methods):  # type: ignore[index]
            _check_match(kind, rows, shop.universe(task), shop.student(student), shop.study.probe)


def _rehearse(universe: Universe, config: StudentConfig, *, where: str) -> tuple[StudentKind, list[Encoded]]:
    """The loaded student, and its training rows in tokens, after it was shown all of them."""
    task, learnt = universe.task, universe.task.rows("train", "unlabelled")
    rows = [*learnt, *task.rows("test"), *universe.validation]
    with quiet_transformers():
        kind = kind_named(config.kind).load(config.model, task, config)
        try:
            encoded = kind.encode(rows)
            if not isinstance(kind, Static):  # what any student's frozen embedding is made of, for the gate
                Static.prepare(config.model, task, config).encode(rows)
        except DataError as error:
            raise DataError(f"{where}: {error}") from None
    return kind, encoded[: len(learnt)]


def _check_match(
    kind: StudentKind, rows: Sequence[Encoded], universe: Universe, config: StudentConfig, probe: ProbeConfig
) -> None:
    """Raise ConfigError where the teacher's states and the student's texts do not go together."""
    examples = universe.task.rows("train", "unlabelled")
    wanted = state_counts(examples, universe.task.kind, probe)
    for states, row in zip(wanted, rows, strict=True):
        if states != len(row.sequences):
            raise ConfigError(
                f"study task {universe.task.name}: hidden-kd matches {states} teacher state(s) a row, and a student of kind "
                f"{config.kind} reads a row in {len(row.sequences)} text(s); leave hidden-kd out of methods, or take "
                "another kind"
            )
    if not isinstance(kind, Static):  # its embeddings are projected, without a loss
        HiddenMatch(kind.network, 1, config.hidden)


def state_counts(examples: Sequence[Example], kind: Kind, probe: ProbeConfig) -> list[int]:
    """How many states of each row ``methods.hidden.hidden_place`` will match: one, or one for each option.

    In multiple choice it takes options where the probe may read any, and in classification the answer where it may.
    """
    answer = probe.positions is None or "answer" in probe.positions
    options = probe.positions is None or set(probe.positions) != {"answer"}
    each = options if kind == "multiple_choice" else not answer
    return [len(e.options) if each else 1 for e in examples]
