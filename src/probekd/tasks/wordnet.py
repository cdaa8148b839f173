"""Two small tasks made from WordNet; they ship with the package, so that a first run needs no data and no network."""

from __future__ import annotations

from collections import defaultdict
from importlib.resources import as_file, files
from pathlib import Path

from probekd.config import PromptConfig
from probekd.tasks.answers import index_answer
from probekd.tasks.base import Example, Task
from probekd.tasks.benchmark import Builtin
from probekd.tasks.readers import Located, read_rows
from probekd.tasks.rows import options_of, text_of

KINDS_PROMPT = PromptConfig(instruction='Kinds: {{ labels | join(", ") }}.', template="Word: {{ question }}\nKind:")
OPTIONS = ("option_a", "option_b", "option_c", "option_d")


def read_kinds(data_dir: Path | None) -> Task:
    """Word -> kind; ``data_dir`` is not used."""
    rows = _package_rows("wordnet_kinds.csv")
    labels = tuple(sorted({text_of(row, "kind", where) for where, row in rows}))
    splits: dict[str, list[Example]] = defaultdict(list)
    for where, row in rows:
        word = text_of(row, "word", where)
        answer = labels.index(text_of(row, "kind", where))
        example = Example(id=f"wordnet_kinds/{word}", question=word, options=labels, answer=answer)
        splits[text_of(row, "split", where)].append(example)
    return Task(name="wordnet_kinds", kind="classification", splits=_frozen(splits), labels=labels, prompt=KINDS_PROMPT)


def read_which(data_dir: Path | None) -> Task:
    """Kind and four words -> the word that is of that kind; ``data_dir`` is not used."""
    splits: dict[str, list[Example]] = defaultdict(list)
    for number, (where, row) in enumerate(_package_rows("wordnet_which.csv")):
        options = options_of(row, OPTIONS, where)
        example = Example(
            id=f"wordnet_which/{number}",
            question=f"Which of these is a kind of {text_of(row, 'kind', where)}?",
            options=options,
            answer=index_answer(row["answer"], options, where),
        )
        splits[text_of(row, "split", where)].append(example)
    return Task(name="wordnet_which", kind="multiple_choice", splits=_frozen(splits))


def _package_rows(name: str) -> list[Located]:
    with as_file(files("probekd.tasks") / "data" / name) as path:
        return list(read_rows(path))


def _frozen(splits: dict[str, list[Example]]) -> dict[str, tuple[Example, ...]]:
    return {split: tuple(rows) for split, rows in splits.items()}


WORDNET_KINDS = Builtin(
    name="wordnet_kinds",
    kind="classification",
    description="WordNet nouns and their kind (animal, food, ...); ships with the package",
    read=read_kinds,
)
WORDNET_WHICH = Builtin(
    name="wordnet_which",
    kind="multiple_choice",
    description="Which of four WordNet nouns is of a given kind; ships with the package",
    read=read_which,
)
