"""What the built-in tasks share: a registry entry, and public benchmarks read from JSONL files or from the Hub.

Files and Hub rows are brought to one layout: ``question``, ``choices`` (list of texts), ``answer`` (index from 0), and
where they exist ``id`` and ``subject``.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from probekd.config import PromptConfig
from probekd.errors import DataError
from probekd.tasks.answers import index_answer
from probekd.tasks.base import Example, Kind, Task
from probekd.tasks.readers import Located, Row, Source, read_hub, read_rows
from probekd.tasks.rows import options_of, text_of

DATA_VARIABLE = "PROBEKD_DATA"


@dataclass(frozen=True, kw_only=True)
class Builtin:
    """A task that is read by its name.

    Attributes:
        name: What the user asks for.
        kind: ``multiple_choice`` or ``classification``.
        description: One line for ``probekd tasks``.
        read: From ``data_dir`` (None = the variable PROBEKD_DATA, else the Hub) to the task; tasks that ship with the
            package need no data_dir.
    """

    name: str
    kind: Kind
    description: str
    read: Callable[[Path | None], Task]


@dataclass(frozen=True, kw_only=True)
class Benchmark:
    """Where a benchmark's rows are.

    Attributes:
        folder: Directory under the data directory.
        files: File name for each of our splits.
        hub: Hub source for each of our splits.
        from_hub: Brings a Hub row to the layout of the files.
    """

    folder: str
    files: Mapping[str, str]
    hub: Mapping[str, Source]
    from_hub: Callable[[Row], Row]

    def directory(self, data_dir: Path | None) -> Path | None:
        """The benchmark's folder, or None when it is to be read from the Hub."""
        variable = os.environ.get(DATA_VARIABLE)
        root = data_dir or (Path(variable) if variable else None)
        return root / self.folder if root else None

    def file(self, directory: Path, name: str) -> Path:
        """A file of the benchmark; raises DataError when it is not there."""
        path = directory / name
        if not path.is_file():
            raise DataError(
                f"{path}: no such file; task.data_dir, else the variable {DATA_VARIABLE}, must name the directory that "
                f"holds {self.folder}/{name}, or be unset to read from the Hub"
            )
        return path

    def rows(self, data_dir: Path | None) -> dict[str, Iterator[Located]]:
        """Rows of each split in the common layout.

        Raises:
            DataError: a file is missing, or the Hub cannot be reached; names what to set.
        """
        directory = self.directory(data_dir)
        if directory:
            return {split: read_rows(self.file(directory, name)) for split, name in self.files.items()}
        return {split: self._hub_rows(split, source) for split, source in self.hub.items()}

    def _hub_rows(self, split: str, source: Source) -> Iterator[Located]:
        try:
            for where, row in read_hub(source, source.split or split):
                yield where, self.from_hub(row)
        except DataError as error:
            raise DataError(
                f"{error}; to read from files, set {DATA_VARIABLE} or task.data_dir to the directory that holds "
                f"{self.folder}/{self.files[split]}"
            ) from None


def read_multiple_choice(
    benchmark: Benchmark, name: str, data_dir: Path | None, *, prompt: PromptConfig | None = None
) -> Task:
    """The task of a multiple-choice benchmark; raises DataError as ``Benchmark.rows`` does, or for a broken row."""
    splits = {
        split: tuple(
            _multiple_choice(row, where, f"{name}/{split}/{number}") for number, (where, row) in enumerate(rows)
        )
        for split, rows in benchmark.rows(data_dir).items()
    }
    return Task(name=name, kind="multiple_choice", splits=splits, prompt=prompt or PromptConfig())


def _multiple_choice(row: Row, where: str, default_id: str) -> Example:
    options = options_of(row, "choices", where)
    return Example(
        id=text_of(row, "id", where) if "id" in row else default_id,
        question=text_of(row, "question", where),
        options=options,
        answer=index_answer(row.get("answer"), options, where),
        subject=text_of(row, "subject", where) if "subject" in row else "",
    )


def drop_equal_options(task: Task) -> Task:
    """Leave out rows with two equal options, whose answer is not unique, and note how many; for published data only.

    Worked examples (``dev``) are only shown, and stay.
    """
    kept = {
        split: tuple(e for e in rows if split == "dev" or len(set(e.options)) == len(e.options))
        for split, rows in task.splits.items()
    }
    dropped = {split: len(rows) - len(kept[split]) for split, rows in task.splits.items()}
    notes = [f"{_rows(count, split)} left out" for split, count in dropped.items() if count]
    return replace(task, splits=kept, notes=(*task.notes, *notes))


def _rows(count: int, split: str) -> str:
    return (
        f"1 {split} row has two equal options and was"
        if count == 1
        else f"{count} {split} rows have two equal options and were"
    )
