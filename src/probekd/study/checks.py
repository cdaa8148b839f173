"""What can be wrong with a study's students, found before the teacher reads anything: hours later it would be dear."""

from __future__ import annotations

from collections.abc import Sequence

from probekd.config import StudentConfig
from probekd.errors import DataError
from probekd.methods import RECIPES
from probekd.student.checks import check_student
from probekd.student.fit import check_logs
from probekd.student.kinds import StudentKind, kind_named
from probekd.student.kinds.static import Static
from probekd.student.objective import HiddenMatch
from probekd.study.plan import Draw
from probekd.study.universe import Universe
from probekd.study.workshop import Workshop
from probekd.teacher.load import quiet_transformers


def check_students(shop: Workshop, draws: Sequence[Draw]) -> None:
    """Load every student of the cells that are missing in some draws, and show it the rows of its tasks.

    Raises:
        ConfigError: a method that a student cannot learn by, or a tracker without a place for its files.
        DataError: a row that does not fit a student.
        ModelError: a checkpoint that cannot be used.
    """
    missing = [cell for draw in draws for cell in shop.missing(draw) if cell.student]
    for task, student in dict.fromkeys((cell.draw.task, cell.student) for cell in missing):
        methods = {cell.method for cell in missing if (cell.draw.task, cell.student) == (task, student)}
        matching = any(RECIPES[method].hidden for method in methods)  # type: ignore[index]
        universe, config = shop.universe(task), shop.student(student)
        shop.watcher.began(f"{task}: does {student} fit?")
        check_student(config, universe.task, shop.study.probe, matching=matching)
        if config.kind != "static":
            check_logs(config, None)  # a study's students are not kept
        kind = _rehearse(universe, config, where=f"study task {task}, student {student}")
        if matching and not isinstance(kind, Static):  # its embeddings are projected, without a loss
            HiddenMatch(kind, 1, config.hidden)


def _rehearse(universe: Universe, config: StudentConfig, *, where: str) -> StudentKind:
    """The loaded student, after it was shown all rows."""
    task = universe.task
    rows = [*task.rows("train", "unlabelled", "test"), *universe.validation]
    with quiet_transformers():
        kind = kind_named(config.kind).load(config.model, task, config)
        try:
            kind.encode(rows)
            if not isinstance(kind, Static):  # what any student's frozen embedding is made of, for the gate
                Static.prepare(config.model, task, config).encode(rows)
        except DataError as error:
            raise DataError(f"{where}: {error}") from None
    return kind
