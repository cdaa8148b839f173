"""lm-eval and our own scorer, on the same rows and with the same student."""

from __future__ import annotations

import random
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from tiny import CHAT_TEMPLATE, TEXTS, byte_level_tokenizer, choice_row
from transformers import AutoModelForCausalLM, AutoTokenizer

from probekd.config import KindName, Likelihood, PromptConfig, StudentConfig
from probekd.errors import ConfigError, DataError, ModelError
from probekd.evaluation import harness
from probekd.evaluation.harness import HarnessScore, Request, harness_score, same_tokens
from probekd.student import Student, distill
from probekd.student.kinds.label_token import LabelToken
from probekd.tasks.base import Example, Task

pytest.importorskip("lm_eval")
WORDS = sorted({w.strip("?.,:") for text in TEXTS for w in text.split()} | {"é", "漢字"})
Dir = Callable[[str], Path]


def rows(split: str, number: int, labels: tuple[str, ...] = ()) -> tuple[Example, ...]:
    """Rows of 2 to 5 options, or of one label set; questions and options of different lengths."""
    draw = random.Random(split)
    found = []
    for i in range(number):
        question = f"Which {' '.join(draw.choices(WORDS, k=draw.randint(1, 6)))}?"
        phrases = (" ".join(draw.choices(WORDS, k=draw.randint(1, 3))) for _ in range(20))
        options = labels or tuple(dict.fromkeys(phrases))[: draw.randint(2, 5)]
        found.append(choice_row(f"{split}{i}", question, *options, answer=draw.randrange(len(options))))
    return tuple(found)


def task(kind: str = "multiple_choice", **prompt: object) -> Task:
    labels = ("animal", "tool", "food") if kind == "classification" else ()
    splits = {split: rows(split, n, labels) for split, n in (("train", 4), ("test", 40), ("dev", 2))}
    return Task(name="t", kind=kind, splits=splits, labels=labels, prompt=PromptConfig(**prompt))  # type: ignore[arg-type]


def trained(directory: Path, task: Task, kind: KindName, likelihood: Likelihood = "sum") -> Student:
    config = StudentConfig(
        model=str(directory),
        kind=kind,
        likelihood=likelihood,
        label_epochs=1,
        early_stopping=None,
        learning_rate=1e-3,
        max_length=250,
    )
    return distill(directory, task, None, method="labels", config=config)


def picks(monkeypatch: pytest.MonkeyPatch, student: Student, test: list[Example]) -> tuple[HarnessScore, list[int]]:
    """The score, and lm-eval's pick in each row as our code understood it."""
    seen: list[list[int]] = []
    read = harness._picks
    monkeypatch.setattr(harness, "_picks", lambda *a: (seen.append(read(*a)), seen[-1])[1])
    return harness_score(student, test, batch_size=7), seen[0]


@pytest.mark.parametrize(
    ("kind", "likelihood", "task_kind", "family", "prompt"),
    [
        ("label_token", "sum", "multiple_choice", "llama", {}),
        ("label_token", "sum", "classification", "gpt2", {"shots": 1}),
        ("option_likelihood", "sum", "multiple_choice", "gemma2", {}),
        ("option_likelihood", "per byte", "multiple_choice", "qwen2", {"shots": 1}),
    ],
)
def test_lm_eval_picks_what_the_student_picks(
    kind: KindName,
    likelihood: Likelihood,
    task_kind: str,
    family: str,
    prompt: dict[str, object],
    model_dir: Dir,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    student = trained(model_dir(family), task(task_kind, **prompt), kind, likelihood)
    test = task(task_kind).rows("test")
    capfd.readouterr()
    score, theirs = picks(monkeypatch, student, test)
    assert capfd.readouterr() == ("", "")
    mine = [int(p.argmax()) for p in student.predict_proba(test)]
    assert theirs == mine
    assert len(set(mine)) > 1
    assert score.harness == score.accuracy == np.mean([m == e.answer for m, e in zip(mine, test, strict=True)])
    assert (score.n, score.differ) == (40, ())


@pytest.mark.parametrize(
    ("kind", "template"),
    [
        ("label_token", CHAT_TEMPLATE),
        ("label_token", CHAT_TEMPLATE.removeprefix("{{ bos_token }}")),
        ("option_likelihood", CHAT_TEMPLATE),
    ],
)
def test_a_chat_prompt_is_the_same_in_lm_eval(kind: KindName, template: str, model_dir: Dir, tmp_path: Path) -> None:
    """Its template alone decides about the BOS token, and ends in a line break, which lm-eval moves into the answer."""
    tokenizer = AutoTokenizer.from_pretrained(model_dir("llama"))
    tokenizer.chat_template = template
    AutoModelForCausalLM.from_pretrained(model_dir("llama")).save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    spoken = task(chat=True, system="Be brief.")
    score = harness_score(trained(tmp_path, spoken, kind), spoken.rows("test"))
    assert score.differ == ()
    assert score.harness == score.accuracy
    if kind == "option_likelihood":
        with pytest.raises(ModelError, match=r"lm-eval would read other tokens"):
            harness_score(trained(tmp_path, spoken, kind, "per byte"), spoken.rows("test"))


def test_a_pick_that_differs_is_named(model_dir: Dir, monkeypatch: pytest.MonkeyPatch) -> None:
    student = trained(model_dir("llama"), task(), "label_token")
    test = task().rows("test")
    read = harness._picks

    def other(*arguments: object) -> list[int]:
        found = read(*arguments)  # type: ignore[arg-type]
        return [(found[0] + 1) % 2, *found[1:]]

    monkeypatch.setattr(harness, "_picks", other)
    assert harness_score(student, test).differ == ("test0",)


def test_other_tokens_are_refused_before_anything_is_computed(model_dir: Dir, monkeypatch: pytest.MonkeyPatch) -> None:
    student = trained(model_dir("llama"), task(), "label_token")
    monkeypatch.setattr(  # "A" where the student was trained on " A"
        harness, "requests_of", lambda *a, f=harness.requests_of: [replace(r, text=r.text.strip()) for r in f(*a)]
    )
    with pytest.raises(ModelError, match=r"ends in .*Answer:' and for the answer 'A'"):
        harness_score(student, task().rows("test"))


@pytest.mark.parametrize(
    ("context", "continuation", "same", "exactly_the_same"),
    [
        ((1, 2), (3,), True, True),
        ((1,), (2, 3), True, False),  # the end of the prompt, moved into the answer
        ((1, 2, 3), (), False, False),
        ((0, 1, 2), (3,), False, False),  # a second BOS
        ((1, 2), (4,), False, False),
        ((1, 2), (3, 0), False, False),  # an EOS
    ],
)
def test_same_tokens(
    context: tuple[int, ...], continuation: tuple[int, ...], same: bool, exactly_the_same: bool
) -> None:
    request = Request(context="", text="", read=(1, 2), said=(3,))
    assert same_tokens(request, context, continuation, exactly=False) == same
    assert same_tokens(request, context, continuation, exactly=True) == exactly_the_same


def test_labels_of_several_tokens_are_asked_by_their_first(model_dir: Dir) -> None:
    labels = ("grasshopper", "stonework", "hammerhead")
    bugs = Task(name="t", kind="classification", splits={"train": rows("train", 2, labels)}, labels=labels)
    config = StudentConfig(model=str(model_dir("llama")), kind="label_token")
    student = LabelToken.prepare(config.model, bugs, config)
    row = bugs.rows("train")[0]
    asked = harness.requests_of(student, row, student.encode([row])[0])
    assert all(len(r.said) == 1 and f" {label}".startswith(r.text) for r, label in zip(asked, labels, strict=True))
    assert len({r.text for r in asked}) == 3
    tokenizer = byte_level_tokenizer()
    for r in asked:
        assert tokenizer(r.context + r.text)["input_ids"] == [*r.read, *r.said]


def test_students_that_lm_eval_cannot_ask(model_dir: Dir, monkeypatch: pytest.MonkeyPatch) -> None:
    head = distill(
        model_dir("bert"),
        task(),
        None,
        method="labels",
        config=StudentConfig(model="bert", label_epochs=1, early_stopping=None),
    )
    with pytest.raises(ModelError, match=r"kind 'head' does not answer in words.*label_token or option_likelihood"):
        harness_score(head, task().rows("test"))
    by_token = trained(model_dir("llama"), task(), "option_likelihood", "per token")
    with pytest.raises(ConfigError, match=r"no metric like student\.likelihood: per token; it takes sum or per byte"):
        harness_score(by_token, task().rows("test"))
    with pytest.raises(DataError, match="no row has an answer"):
        harness_score(by_token, [replace(e, answer=None) for e in task().rows("test")])
    monkeypatch.setitem(sys.modules, "lm_eval", None)
    with pytest.raises(ConfigError, match=r"pip install 'probekd\[lm-eval\]'"):
        harness_score(trained(model_dir("llama"), task(), "label_token"), task().rows("test"))


@pytest.mark.parametrize("trusted", [False, True])
def test_lm_eval_may_run_what_the_student_may(model_dir: Dir, monkeypatch: pytest.MonkeyPatch, trusted: bool) -> None:
    student = trained(model_dir("llama"), task(), "label_token")
    told: list[bool] = []
    base = harness._lm_eval().models.huggingface.HFLM
    original = base.__init__

    def watched(self: object, *args: object, **options: object) -> None:
        told.append(bool(options["trust_remote_code"]))
        original(self, *args, **options)

    monkeypatch.setattr(base, "__init__", watched)
    harness_score(student, list(rows("test", 3)), trust_remote_code=trusted)
    assert told == [trusted]
