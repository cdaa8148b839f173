"""Targets as a dataset: what `datasets` reads back, and a student that is trained on it without probekd."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import datasets
import numpy as np
import pytest
import torch
from transformers import AutoModelForSequenceClassification, BertConfig, BertModel, BertTokenizer

from probekd.dataset import write_dataset
from probekd.errors import StoreError
from probekd.student.licence import Origin
from probekd.targets import SoftTargets, cross_fitted_targets, softmax
from probekd.tasks.base import Example, Task

SCRIPT = Path(__file__).parents[1] / "examples" / "soft_labels" / "train_plain.py"
NOUNS = {"animal": ("dog", "cat", "horse"), "tool": ("hammer", "saw", "drill"), "food": ("bread", "rice", "soup")}
LABELS = tuple(NOUNS)


@pytest.fixture
def task() -> Task:
    """Words and what they are; every label's words are in every split."""

    def rows(split: str, answered: bool) -> tuple[Example, ...]:
        return tuple(
            Example(
                id=f"{split}-{word}-{i}",
                question=f"{word} {'big ' * i}".strip(),
                options=LABELS,
                answer=LABELS.index(label) if answered else None,
            )
            for label, words in NOUNS.items()
            for word in words
            for i in range(3)
        )

    splits = {"train": rows("train", True), "unlabelled": rows("pool", False), "test": rows("test", True)}
    return Task(name="kinds | of *things*", kind="classification", splits=splits, labels=LABELS)


def targets_of(task: Task) -> SoftTargets:
    """Soft labels that are right, and not sure."""

    def logits(e: Example) -> np.ndarray:
        word = e.question.split()[0]
        return 2.5 * np.array([word in words for words in NOUNS.values()], dtype=float)

    train, pool = task.rows("train"), task.rows("unlabelled")
    folds = [i % 3 for i in range(len(train))]
    return cross_fitted_targets(
        [e.id for e in train], [logits(e) for e in train], folds, [e.id for e in pool], [logits(e) for e in pool]
    )


def test_datasets_reads_back_what_was_written(task: Task, tmp_path: Path) -> None:
    targets = targets_of(task)
    rows = write_dataset(task, targets, tmp_path / "labels", Origin(name="tiny", licence="mit"))
    assert rows == {"train": 54, "test": 27}
    found = datasets.load_dataset(str(tmp_path / "labels"), cache_dir=str(tmp_path / "cache"))
    assert {name: len(split) for name, split in found.items()} == rows
    by_id = {e.id: e for e in task.rows()}
    for row, logits, source in zip(found["train"], targets.logits, targets.sources, strict=True):
        example = by_id[row["id"]]
        assert (row["question"], tuple(row["options"]), row["answer"]) == (
            example.question,
            example.options,
            example.answer,
        )
        assert (row["split"] == "train") == (row["source"] == source == "oof") == (row["answer"] is not None)
        assert row["logits"] == logits.tolist()
        assert row["soft_labels"] == softmax(logits).tolist()
    assert {row["split"] for row in found["train"]} == {"train", "unlabelled"}
    test = found["test"][0]
    assert (test["split"], test["soft_labels"], test["source"]) == ("test", None, None)
    assert [row["answer"] for row in found["test"]] == [e.answer for e in task.rows("test")]


def test_rows_of_multiple_choice_keep_their_own_options(tmp_path: Path) -> None:
    rows = tuple(Example(id=f"r{k}", question="?", options=tuple("abcde"[:k]), answer=0) for k in (2, 4))
    task = Task(name="mc", kind="multiple_choice", splits={"train": rows})
    targets = cross_fitted_targets(["r2", "r4"], [np.zeros(2), np.arange(4.0)], [0, 1], [], [])
    write_dataset(task, targets, tmp_path / "d", Origin(name="t"))
    found = datasets.load_dataset(str(tmp_path / "d"), split="train", cache_dir=str(tmp_path / "cache"))
    assert [(len(r["options"]), len(r["soft_labels"])) for r in found] == [(2, 2), (4, 4)]


def test_the_card_says_what_is_in_it(task: Task, tmp_path: Path) -> None:
    write_dataset(task, targets_of(task), tmp_path / "d", Origin(name="tiny", licence="mit"))
    card = (tmp_path / "d" / "README.md").read_text()
    assert "# Soft labels for kinds \\| of \\*things\\*" in card
    assert "27 labelled and 27 unlabelled rows" in card
    assert "the labels, the same in every row: animal, tool, food" in card
    assert "licence: mit." in card


@pytest.mark.parametrize(
    ("method", "says"),
    [
        ("probe-kd", "what a probe read in the hidden states of tiny\\_x (the method `probe-kd`)"),
        ("logit-kd", "what tiny\\_x said by its output tokens, as it is (the method `logit-kd`)"),
        ("label-smoothing", "the gold answers, smoothed (the method `label-smoothing`)"),
    ],
)
def test_the_card_says_who_made_the_labels(task: Task, tmp_path: Path, method: str, says: str) -> None:
    targets = targets_of(task)
    if method == "label-smoothing":
        targets = replace(targets, sources=("smoothed",) * len(targets))
    write_dataset(task, targets, tmp_path / "d", Origin(name="tiny_x"), method)
    card = (tmp_path / "d" / "README.md").read_text()
    assert f"They are\n{says}." in card
    assert ("`oof`: of models that were fitted without this row" in card) is (method != "label-smoothing")
    assert ("`smoothed`: its answer, smoothed" in card) is (method == "label-smoothing")


def test_what_would_be_wrong_is_refused(task: Task, tmp_path: Path) -> None:
    (tmp_path / "d").mkdir()
    (tmp_path / "d" / "mine.txt").write_text("kept")
    with pytest.raises(StoreError, match="is there already"):
        write_dataset(task, targets_of(task), tmp_path / "d", Origin(name="t"))
    assert [f.name for f in (tmp_path / "d").iterdir()] == ["mine.txt"]
    other = replace(task, splits={"train": task.splits["train"]})
    with pytest.raises(StoreError, match="rows that the task has not, such as 'pool-dog-0'"):
        write_dataset(other, targets_of(task), tmp_path / "e", Origin(name="t"))
    assert not (tmp_path / "e").exists()


@pytest.mark.slow
def test_the_example_trains_a_student_without_probekd(task: Task, tmp_path: Path) -> None:
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "big", *(w for ws in NOUNS.values() for w in ws)]
    BertTokenizer(vocab={w: i for i, w in enumerate(words)}, model_max_length=32).save_pretrained(tmp_path / "bert")
    torch.manual_seed(0)
    sizes = {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 64}
    BertModel(BertConfig(vocab_size=len(words), max_position_embeddings=32, **sizes)).save_pretrained(tmp_path / "bert")
    write_dataset(task, targets_of(task), tmp_path / "labels", Origin(name="tiny"))
    # In a place of its own, so that nothing but an import could bring probekd in.
    code = (
        "import runpy, sys\n"
        "sys.argv = sys.argv[1:]\n"
        "runpy.run_path(sys.argv[0], run_name='__main__')\n"
        "assert not [name for name in sys.modules if name.startswith('probekd')]\n"
    )
    options = ["--model", tmp_path / "bert", "--output", tmp_path / "student", "--epochs", "60"]
    command = [sys.executable, "-c", code, SCRIPT, tmp_path / "labels", *options, "--learning-rate", "1e-3"]
    environment = {**os.environ, "HF_HOME": str(tmp_path / "hf"), "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout.strip().splitlines()[-1])
    assert found["rows"] == 27 and found["accuracy"] > 0.9
    student = AutoModelForSequenceClassification.from_pretrained(tmp_path / "student")
    assert student.config.id2label == dict(enumerate(LABELS))
