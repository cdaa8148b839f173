"""A user's own task: one YAML file that says where the rows are and which column holds what."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any

from pydantic import Field, field_validator, model_validator

from probekd.config import PromptConfig, Section, read_yaml, validate
from probekd.errors import DataError
from probekd.tasks.answers import AnswerFormat, label_name, resolve_answers
from probekd.tasks.base import Example, Kind, Task, check_options
from probekd.tasks.readers import Located, Row, Source, read_source
from probekd.tasks.rows import Draft, id_of, is_empty, missing_column, options_of, text_of

UNLABELLED = "unlabelled"


class Data(Section):
    """Where the rows of each split are."""

    train: Source
    """Rows to learn from; those with an empty answer join the unlabelled ones."""
    validation: Source | None = None
    """Rows to look at while choosing; never trained on."""
    test: Source | None = None
    """Rows to report on."""
    unlabelled: Source | None = None
    """Rows without answers; answers that are there are dropped."""
    dev: Source | None = None
    """Worked examples for prompts; they take part in nothing else."""

    @model_validator(mode="after")
    def _something_to_evaluate(self) -> Data:
        if self.validation is None and self.test is None:
            raise ValueError("give validation or test, or both: without them nothing can be measured")
        return self


class Columns(Section):
    """Which column holds what. A column named here must exist; without a mapping, id and subject are optional."""

    id: str = "id"
    """Unique name of the row, text or a whole number; rows of a file without it are called <split>/<row from 0>."""
    question: str = "question"
    """The question, or the text to classify."""
    answer: str = "answer"
    """The answer or label; an empty cell means unlabelled."""
    options: str | Annotated[tuple[str, ...], Field(min_length=2, max_length=10)] = "options"
    """Multiple choice: one column with a list of texts, or a list of columns, one an option."""
    subject: str = "subject"
    """Group from which worked examples are taken."""


class TaskFile(Section):
    """A task file.

    ``answer_format`` says how answers are written. Multiple choice: ``index`` (from 0), ``letter`` (A to J) or ``text``
    (of the option). Classification: ``text`` (label name) or ``index`` (into ``labels``, from 0). ``auto`` takes the
    one format that every labelled row of the task fits. Indices that count from 1 cannot be told from indices that
    count from 0, so they are never guessed.
    """

    name: Annotated[str, Field(pattern=r"^[A-Za-z0-9][\w.-]*$")]
    """For reports and file names."""
    kind: Kind
    data: Data
    columns: Columns = Columns()
    labels: Annotated[tuple[str, ...], Field(min_length=2)] | None = None
    """Classification: the label set, in order; None = the labels of the training rows, sorted."""
    answer_format: AnswerFormat = "auto"
    """How answers are written: auto, index (from 0), letter or text."""
    prompt: PromptConfig = PromptConfig()

    @field_validator("labels", mode="before")
    @classmethod
    def _labels_are_text(cls, value: Any) -> Any:
        if isinstance(value, list):
            plain = next((label for label in value if not isinstance(label, str)), None)
            if plain is not None:
                raise ValueError(
                    f"the label {plain!r} is not text; put it in quotes, YAML reads yes, no and numbers otherwise"
                )
            if len({label.strip() for label in value}) < len(value):
                raise ValueError("a label occurs twice")
            return [label.strip() for label in value]
        return value

    @model_validator(mode="after")
    def _keys_fit_the_kind(self) -> TaskFile:
        if self.kind == "multiple_choice" and self.labels is not None:
            raise ValueError("labels belong to classification; in multiple_choice each row has its own options")
        if self.kind == "classification" and "options" in self.columns.model_fields_set:
            raise ValueError("columns.options belongs to multiple_choice; classification takes its options from labels")
        if self.kind == "classification" and self.answer_format == "letter":
            raise ValueError("answer_format letter belongs to multiple_choice")
        if self.kind == "classification" and self.answer_format == "index" and self.labels is None:
            raise ValueError("answer_format index needs labels, the list that the answers point into")
        return self


def read_task_file(path: Path) -> Task:
    """Read a task file and all of its rows.

    Raises:
        ConfigError: the task file itself cannot be used.
        DataError: a row cannot be used; names the file, the line and the field.
    """
    spec = validate(TaskFile, read_yaml(path), str(path))
    sources: dict[str, Source] = {split: source for split, source in spec.data if source is not None}
    drafts = {s: read_drafts(read_source(source, split=s, base=path.parent), s, spec) for s, source in sources.items()}
    for split, rows in drafts.items():
        if not rows:
            raise DataError(f"{path}: the split {split} has no rows ({sources[split].path or sources[split].hub})")
    if all(draft.answer is None for draft in drafts["train"]):
        raise DataError(
            f"{path}: no row of train has an answer (column {spec.columns.answer!r}); there is nothing to learn from"
        )
    _check_ids(draft for rows in drafts.values() for draft in rows)
    labels, notes = ((), ()) if spec.kind == "multiple_choice" else _label_set(spec, drafts["train"])
    if spec.kind == "classification":
        drafts = {split: [replace(d, options=labels) for d in rows] for split, rows in drafts.items()}
    return Task(
        name=spec.name,
        kind=spec.kind,
        splits=_examples(drafts, spec, path),
        labels=labels,
        prompt=spec.prompt,
        notes=notes,
    )


def read_drafts(rows: Iterable[Located], split: str, spec: TaskFile) -> list[Draft]:
    """Rows of one split with everything but the answer in its final form.

    Raises:
        DataError: a field is missing or of the wrong kind, or a column that is mapped occurs in no row.
    """
    drafts: list[Draft] = []
    seen: dict[str, None] = {}
    where = ""
    for number, (where, row) in enumerate(rows):
        seen |= dict.fromkeys(row)
        drafts.append(_draft(row, where, f"{split}/{number}", split, spec))
    if drafts:
        _check_columns(seen, where, split, spec.columns)
    return drafts


def _draft(row: Row, where: str, default_id: str, split: str, spec: TaskFile) -> Draft:
    columns = spec.columns
    answer = row.get(columns.answer)
    subject = row.get(columns.subject)
    draft = Draft(
        where=where,
        id=id_of(row, columns.id, where) if columns.id in row else default_id,
        question=text_of(row, columns.question, where),
        options=() if spec.kind == "classification" else options_of(row, columns.options, where),
        answer=None if split == UNLABELLED or is_empty(answer) else answer,
        subject="" if is_empty(subject) else text_of(row, columns.subject, where),
    )
    if spec.kind == "multiple_choice":
        check_options(Example(id=draft.id, question=draft.question, options=draft.options), where)
    return draft


def _check_columns(seen: Mapping[str, None], last: str, split: str, columns: Columns) -> None:
    """Columns that a single row may lack, but not all of them: one that is mapped, and the answers."""
    needed = [getattr(columns, name) for name in ("id", "subject") if name in columns.model_fields_set]
    if split != UNLABELLED:
        needed.append(columns.answer)
    for column in needed:
        if column not in seen:
            raise missing_column(column, seen, f"the rows up to {last}")


def _check_ids(drafts: Iterable[Draft]) -> None:
    places: dict[str, str] = {}
    for draft in drafts:
        if draft.id in places:
            raise DataError(
                f"{draft.where}: the id {draft.id!r} is already taken by {places[draft.id]}; ids must be unique"
            )
        places[draft.id] = draft.where


def _label_set(spec: TaskFile, train: Sequence[Draft]) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Labels, and a note when they were inferred: sorted as numbers when all are whole numbers, else as text."""
    if spec.labels is not None:
        return spec.labels, ()
    names = {label_name(draft.answer, draft.where) for draft in train if draft.answer is not None}
    if len(names) < 2:
        raise DataError(
            f"task {spec.name}: train has one label only, {next(iter(names))!r}; list the label set under `labels`"
        )
    numeric = all(name.isdecimal() for name in names)
    labels = tuple(sorted(names, key=int) if numeric else sorted(names))
    note = f"label set of {len(labels)} inferred from train: {', '.join(labels)}"
    advice = "; a teacher reads names better than numbers, give the texts under labels" if numeric else ""
    return labels, (note + advice,)


def _examples(drafts: Mapping[str, Sequence[Draft]], spec: TaskFile, path: Path) -> dict[str, tuple[Example, ...]]:
    rows = [draft for split in drafts.values() for draft in split]
    inferred = spec.kind == "classification" and spec.labels is None
    answers = iter(resolve_answers(rows, spec.kind, "text" if inferred else spec.answer_format, str(path)))
    return {
        split: tuple(
            Example(id=d.id, question=d.question, options=d.options, answer=next(answers), subject=d.subject)
            for d in split_rows
        )
        for split, split_rows in drafts.items()
    }
