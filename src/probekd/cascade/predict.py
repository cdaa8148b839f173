"""Predict a file with a student, and with the teacher's probe where the student is not sure enough."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa

from probekd.cascade.held_out import HeldOut, held_out_rows
from probekd.cascade.teacher import ProbedTeacher, open_run
from probekd.cascade.threshold import Threshold, choose_threshold, fewest_rows
from probekd.errors import ConfigError
from probekd.progress import Progress
from probekd.prompts import shows_subject
from probekd.stages import Run
from probekd.student.backends import Predictor, open_student
from probekd.student.model import StudentInfo
from probekd.student.onnx import Backend
from probekd.student.predict import ADDED, plan_file, prediction, read_examples
from probekd.tasks.base import Example
from probekd.tasks.readers import Row

ANSWERED_BY = pa.schema([*ADDED, pa.field("answered_by", pa.string())])


@dataclass(frozen=True, kw_only=True)
class Rule:
    """Who answers a row.

    Attributes:
        threshold: Confidence above which the student does; None = nowhere, since no threshold reached the agreement.
        agreement: Agreement with the probe that was asked for.
        level: Confidence that was asked for.
        rows: Rows that the threshold was chosen on.
        source: Where these come from.
    """

    threshold: Threshold | None
    agreement: float
    level: float
    rows: int
    source: str

    def __str__(self) -> str:
        """What it promises and why, in one sentence."""
        wanted = f"agreement with the probe of at least {self.agreement:g}, with confidence {self.level:g}"
        if self.threshold is None:
            fewest = fewest_rows(self.agreement, self.level)
            why = f"{fewest} are the fewest" if self.rows < fewest else "not even where the student is most sure"
            return f"every row goes to the probe: {self.rows} rows of {self.source} do not show an {wanted}: {why}"
        t = self.threshold
        return (
            f"the student answers above confidence {t.confidence:.3f} and the probe the rest, for an {wanted}: of "
            f"{t.rows} rows of {self.source} the student keeps {t.kept} and agrees on {t.agreed}"
        )


@dataclass
class Cascade:
    """Answers rows by a rule.

    Attributes:
        student: Asked of every row.
        teacher: Asked where the student is not sure enough.
        rule: Says where that is.
        by_student: Rows that the student has answered so far.
    """

    student: Predictor
    teacher: ProbedTeacher
    rule: Rule
    by_student: int = 0

    def __call__(self, examples: Sequence[Example]) -> list[Row]:
        """The columns of ``ANSWERED_BY`` for some rows."""
        probs = self.student.predict_proba(examples)
        # Every probability is at most 1, so that without a threshold no row is the student's.
        bar = self.rule.threshold.confidence if self.rule.threshold else 1.0
        unsure = [i for i, p in enumerate(probs) if p.max() <= bar]
        self.by_student += len(examples) - len(unsure)
        read = dict(zip(unsure, self.teacher.predict_once([examples[i] for i in unsure]), strict=True))
        return [
            {**prediction(e, read.get(i, p)), "answered_by": "probe" if i in read else "student"}
            for i, (e, p) in enumerate(zip(examples, probs, strict=True))
        ]


def cascade_file(
    student_dir: str | Path,
    run_dir: Path,
    input_path: Path,
    output_path: Path,
    *,
    agreement: float = 0.95,
    level: float = 0.95,
    held_out: Path | None = None,
    question: str | None = None,
    options: str | Sequence[str] | None = None,
    backend: Backend = "torch",
    batch_rows: int = 1024,
    overwrite: bool = False,
    trust_remote_code: bool = False,
    progress: Progress | None = None,
) -> tuple[Rule, Counter[str]]:
    """Predict a file as ``predict_file`` does; each row is answered by the student or by a run's probe.

    The student answers where its calibrated confidence is above a threshold that ``choose_threshold`` finds on held-out
    rows, and the column ``answered_by`` says ``student`` or ``probe``. The teacher is loaded up to the depth that the
    probe reads, and reads no other rows.

    Args:
        student_dir: A student directory.
        run_dir: The run with its teacher and probe.
        input_path: Rows.
        output_path: Where the rows go.
        agreement: Share of the student's picks that are to be the probe's.
        level: Confidence with which they are.
        held_out: A file of rows that neither has learned from, answers not needed; None = the task's validation split,
            and where there is none a sample of the input.
        question: See ``predict_file``.
        options: See ``predict_file``.
        backend: See ``predict_file``.
        batch_rows: Rows in memory at a time.
        overwrite: Replace an output file that exists.
        trust_remote_code: Run Python code that ships with the student's checkpoint; for the teacher the run's config says it.
        progress: Told of the rows predicted, and of the tokens read to find the threshold.

    Returns:
        The rule, and the number of rows that ``student`` and ``probe`` answered.

    Raises:
        ConfigError: an agreement or level outside (0, 1), or a run of another task than the student's.
        DataError: a file, column or row that cannot be used, or a row longer than the teacher's context.
        ModelError: not a student directory, or a teacher that cannot be loaded.
        StoreError: not a run directory, or its probe is not fitted.
    """
    for name, value in (("agreement", agreement), ("confidence", level)):
        if not 0 < value < 1:
            raise ConfigError(f"{name} {value:g}: must lie between 0 and 1, such as 0.95")
    info = StudentInfo.load(Path(student_dir))
    run = open_run(run_dir)
    _check_task(info, run, student_dir)
    prompt = run.task.prompt
    subject = shows_subject(prompt, run.task.rows(prompt.shots_from) if prompt.shots else ())
    plan = plan_file(
        info,
        input_path,
        output_path,
        ANSWERED_BY,
        question=question,
        options=options,
        overwrite=overwrite,
        subject=subject,
    )
    named = read_examples(info, held_out, question, options, subject=subject) if held_out else None
    teacher = ProbedTeacher.open(run)
    student = open_student(student_dir, backend, trust_remote_code=trust_remote_code)
    rows = held_out_rows(run.task, named, plan.examples())
    rule = choose_rule(student, teacher, rows, agreement, level, progress)
    cascade = Cascade(student=student, teacher=teacher, rule=rule)
    plan.write(cascade, batch_rows=batch_rows, progress=progress)
    return rule, Counter(student=cascade.by_student, probe=plan.rows - cascade.by_student)


def choose_rule(
    student: Predictor,
    teacher: ProbedTeacher,
    rows: HeldOut,
    agreement: float,
    level: float,
    progress: Progress | None = None,
) -> Rule:
    """Ask both of the held-out rows, and find where they agree often enough."""
    said, read = student.predict_proba(rows.rows), teacher.predict_proba(rows.rows, progress=progress)
    confidence = np.array([p.max() for p in said])
    agrees = np.array([p.argmax() == q.argmax() for p, q in zip(said, read, strict=True)])
    return Rule(
        threshold=choose_threshold(confidence, agrees, agreement=agreement, level=level),
        agreement=agreement,
        level=level,
        rows=len(rows.rows),
        source=rows.source,
    )


def _check_task(info: StudentInfo, run: Run, student_dir: str | Path) -> None:
    """Raise ConfigError unless student and probe answer the same question."""
    task = run.drawn
    if (info.task, info.kind, info.labels) != (task.name, task.kind, task.labels):
        raise ConfigError(
            f"{student_dir}: a student of the task {info.task}, and the probe of {run.path} is of {task.name}; they must be of "
            "one task and its labels; name the run that the student comes from"
        )
