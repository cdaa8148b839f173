"""Example and Task: the rows of a task by split, checked once, never changed."""

from __future__ import annotations

import hashlib
import unicodedata
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Literal

from probekd.config import PromptConfig
from probekd.errors import DataError

Kind = Literal["multiple_choice", "classification"]
# A question with more option sets than this is a phrase that the task reuses ("Which of these is true?"), so its rows
# are duplicates only when their options are the same too.
MAX_OPTION_SETS_OF_A_QUESTION = 4


@dataclass(frozen=True, slots=True, kw_only=True)
class Example:
    """One row.

    Attributes:
        id: Unique within the task.
        question: Text of the question, or the text to classify.
        options: The row's own options (multiple_choice) or the task's label set (classification).
        answer: 0-based index into ``options``; None = unlabelled.
        subject: Group from which worked examples are taken, or "".
    """

    id: str
    question: str
    options: tuple[str, ...]
    answer: int | None = None
    subject: str = ""


@dataclass(frozen=True, kw_only=True)
class Task:
    """Rows by split. Split names: train, validation, test, unlabelled, dev (worked examples only).

    Attributes:
        name: For reports and file names.
        kind: ``multiple_choice`` or ``classification``.
        splits: Rows of each split, in file order.
        labels: The label set (classification), else empty.
        prompt: How a row is shown to the teacher.
        notes: What was dropped while reading, one sentence each; shown to the user and kept in run.json.
    """

    name: str
    kind: Kind
    splits: Mapping[str, tuple[Example, ...]]
    labels: tuple[str, ...] = ()
    prompt: PromptConfig = field(default_factory=PromptConfig)
    notes: tuple[str, ...] = ()

    def rows(self, *splits: str) -> list[Example]:
        """Rows of the named splits (all but ``dev`` when none is named), in order; a split that is absent has none."""
        names = splits or tuple(name for name in self.splits if name != "dev")
        return [example for name in names for example in self.splits.get(name, ())]

    @property
    def max_options(self) -> int:
        """The most options that a row has."""
        return max(len(example.options) for example in self.rows())

    def budget(
        self,
        *,
        labels: int | None = None,
        pool: int | Literal["all"] = "all",
        limit: Mapping[str, int] | None = None,
        seed: int = 0,
    ) -> Task:
        """Keep ``labels`` answered training rows and ``pool`` unlabelled ones; answers of the pool are removed.

        The subsets are drawn by hash, stratified by answer, and nested: the rows of a smaller budget are also in a
        larger one with the same seed. Order of the rows in the file plays no part.

        Raises:
            DataError: fewer labelled training rows than asked for, or a pool larger than there are rows.
        """
        train = nested_order([e for e in self.splits.get("train", ()) if e.answer is not None], seed)
        wanted = len(train) if labels is None else labels
        if wanted > len(train):
            raise DataError(
                f"task {self.name}: {wanted} labels asked for, but train has {len(train)} labelled rows; lower task.labels"
            )
        unanswered = [e for e in self.splits.get("train", ()) if e.answer is None]
        others = sorted([*self.splits.get("unlabelled", ()), *unanswered], key=lambda e: content_hash(seed, e.id))
        rest = [replace(e, answer=None) for e in [*others, *train[wanted:]]]
        if pool != "all":
            if pool > len(rest):
                raise DataError(
                    f"task {self.name}: a pool of {pool} rows asked for, but {len(rest)} are left; lower task.pool or say all"
                )
            rest = rest[:pool]
        splits = {**self.splits, "train": tuple(train[:wanted]), "unlabelled": tuple(rest)}
        for name, most in (limit or {}).items():
            if name not in self.splits:
                raise DataError(
                    f"task {self.name}: task.limit names the split {name!r}; it has {', '.join(self.splits)}"
                )
            splits[name] = tuple(sorted(splits[name], key=lambda e: content_hash(seed, e.id))[:most])
        return replace(self, splits={name: rows for name, rows in splits.items() if rows or name == "train"})


def content_hash(*parts: object) -> str:
    """Hex digest that depends on the parts alone: the source of every order and subset that must be repeatable."""
    return hashlib.sha256("\x1f".join(str(part) for part in parts).encode()).hexdigest()


def task_content(task: Task) -> str:
    """Digest of everything in a task that can change what a model makes of it."""
    rows = [
        (name, e.id, e.question, e.options, e.answer, e.subject)
        for name in sorted(task.splits)
        for e in task.splits[name]
    ]
    return content_hash(task.name, task.kind, task.labels, task.prompt.model_dump_json(), repr(rows))


def nested_order(examples: Sequence[Example], seed: int) -> list[Example]:
    """Order rows so that every prefix is a stratified random subset.

    Within an answer, rows follow their hash; the m-th of a class of size N gets the key (m + 1/2) / N, so a prefix
    holds each class in proportion.
    """
    by_class: dict[int | None, list[Example]] = defaultdict(list)
    for example in sorted(examples, key=lambda e: content_hash(seed, e.id)):
        by_class[example.answer].append(example)
    keyed = [
        ((rank + 0.5) / len(members), content_hash(seed, "tie", e.id), e)
        for members in by_class.values()
        for rank, e in enumerate(members)
    ]
    return [e for _, _, e in sorted(keyed, key=lambda item: item[:2])]


def normalise(text: str) -> str:
    """Text with case, width and white space folded, for comparison."""
    return " ".join(unicodedata.normalize("NFKC", text).casefold().split())


def duplicate_keys(examples: Sequence[Example]) -> list[str]:
    """A key for each row; rows with equal keys ask the same thing.

    The key is the question, and with it the set of options where the task reuses the question as a set phrase. In
    classification all rows share the options, so the question decides.
    """
    questions = [normalise(e.question) for e in examples]
    option_sets = [tuple(sorted(normalise(o) for o in e.options)) for e in examples]
    sets_of: dict[str, set[tuple[str, ...]]] = defaultdict(set)
    for question, options in zip(questions, option_sets, strict=True):
        sets_of[question].add(options)
    return [
        content_hash(q, *o) if len(sets_of[q]) > MAX_OPTION_SETS_OF_A_QUESTION else content_hash(q)
        for q, o in zip(questions, option_sets, strict=True)
    ]


def check_task(task: Task) -> None:
    """Raise DataError unless every row can be used: ids unique, 2 to 10 distinct options, answers in range."""
    ids = Counter(e.id for e in task.rows(*task.splits))
    repeated = [i for i, n in ids.items() if n > 1]
    if repeated:
        raise DataError(
            f"task {task.name}: id {repeated[0]!r} occurs {ids[repeated[0]]} times ({len(repeated)} ids repeat); ids must be unique"
        )
    for split, rows in task.splits.items():
        for e in rows:
            where = f"task {task.name}, split {split}, row {e.id!r}"
            if not e.question.strip():
                raise DataError(f"{where}: the question is empty")
            # Worked examples are only shown; a benchmark's dev split must keep its official rows.
            if task.kind == "multiple_choice" and split != "dev":
                check_options(e, where)
            if e.answer is not None and not 0 <= e.answer < len(e.options):
                raise DataError(f"{where}: answer {e.answer} is outside its {len(e.options)} options (0-based)")


def check_options(example: Example, where: str) -> None:
    """Raise DataError unless a multiple-choice row has 2 to 10 options, none empty and no two equal."""
    if not 2 <= len(example.options) <= 10:
        raise DataError(f"{where}: {len(example.options)} option(s); multiple choice needs 2 to 10")
    if any(not option.strip() for option in example.options):
        raise DataError(f"{where}: an option is empty")
    if len(set(example.options)) < len(example.options):
        twice = next(o for o, n in Counter(example.options).items() if n > 1)
        raise DataError(
            f"{where}: the option {twice!r} occurs twice, so the answer is not unique; remove the row or mend it"
        )


def without_questions(task: Task) -> Task:
    """The control "options without the question": every row, worked examples too, keeps all but its question.

    The questions are empty, which prompts show as nothing; ``check_task`` would refuse such rows, so they come from
    here and not from a file.

    Raises:
        DataError: a classification task, whose rows would have nothing left to read.
    """
    if task.kind != "multiple_choice":
        raise DataError(
            f"task {task.name}: only multiple-choice rows have options that can be read without the question"
        )
    return replace(
        task, splits={name: tuple(replace(e, question="") for e in rows) for name, rows in task.splits.items()}
    )
