"""A student cut out of its teacher says what the probe says, and plain Transformers reads it."""

from __future__ import annotations

import contextlib
import io
import random
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from transformers import AutoModelForSequenceClassification, AutoTokenizer

from probekd.config import LoraConfig, ProbeConfig, StudentConfig
from probekd.errors import ConfigError, ModelError
from probekd.extraction import extract
from probekd.probes.fit import fit_probes
from probekd.probes.probe import Probe
from probekd.probes.reader import Candidate, Reader
from probekd.states import States
from probekd.student import Student, distill
from probekd.student.cutting import View, cut_student, single_reader
from probekd.student.kinds.cut import HEAD_FILE, READING_FILE
from probekd.targets import SoftTargets, softmax
from probekd.tasks.base import Example, Task
from probekd.teacher.architecture import find_norm
from probekd.teacher.load import Teacher

MEAN = ("branched", "option_mean")
# Readers whose students are a body and a head beside it.
HEADED = (
    *((*MEAN, family) for family in ("llama", "qwen2", "gpt2", "gemma3")),
    ("listed", "option_end", "llama"),
    ("listed", "option_mean", "gpt2"),
)
# Readers whose students are sequence classifiers.
PLAIN = (
    *((True, "branched", "option_end", family) for family in ("llama", "gpt2")),
    *((False, "listed", "answer", family) for family in ("qwen2", "gemma3")),
    (False, "branched", "option_end", "llama"),
)
DEPTH = 2
ONE = ProbeConfig(folds=3, l2=(0.3,), depths=(DEPTH,), windows=(), stack=False)
TeacherOf = Callable[[str], Teacher]
pytestmark = pytest.mark.usefixtures("one_temperature")  # a linear head has no lapse


def rows(split: str, number: int, *, choice: bool, seed: int = 0) -> tuple[Example, ...]:
    """Which of 2 to 4 words is eaten? Or: is the text about food or about tools?"""
    draw = random.Random(f"{split}{seed}")
    food, tools = ("soup", "the rice", "old bread", "cake"), ("hammer", "a saw", "the old drill", "file")
    found = []
    for i in range(number):
        if choice:
            options = [*draw.sample(tools, draw.randint(1, 3)), draw.choice(food)]
            draw.shuffle(options)
            answer = next(j for j, o in enumerate(options) if o in food)
            if draw.random() < 0.2:  # so that no probe is ever quite sure
                answer = draw.randrange(len(options))
            question = f"Which is eaten, in {draw.choice(('the east', 'light', 'a cow'))} {i}?"
        else:
            answer, options = i % 2, ["food", "tool"]
            question = f"{draw.choice((food, tools)[answer])} {i}"
        found.append(Example(id=f"{split}{i}", question=question, options=tuple(options), answer=answer))
    return tuple(found)


def task_of(choice: bool) -> Task:
    splits = {"train": rows("train", 30, choice=choice), "test": rows("test", 9, choice=choice)}
    kind, labels = ("multiple_choice", ()) if choice else ("classification", ("food", "tool"))
    return Task(name="eaten", kind=kind, splits=splits, labels=labels)


def read(teacher: Teacher, task: Task, layout: str, position: str) -> tuple[States, Probe]:
    """States of one view at ``DEPTH``, and the probe that reads it alone."""
    states = extract(teacher, task, splits=("train", "test"), layouts=(layout,), positions=(position,), depths=(DEPTH,))
    return states, fit_probes(states, task, config=ONE.model_copy(update={"positions": (position,)}))


def settings(teacher: Teacher, **changes: Any) -> StudentConfig:
    return StudentConfig(
        model=teacher.name,
        kind="cut",
        **{"epochs": 0, "baselines": (), "learning_rate": 1e-3, "batch_size": 8, "early_stopping": None} | changes,
    )


def cut(
    teacher: Teacher, task: Task, layout: str, position: str, directory: Path, head: Any = "probe", **changes: Any
) -> tuple[Path, States, Probe]:
    states, probe = read(teacher, task, layout, position)
    config = settings(teacher, **changes)
    place = cut_student(teacher.name, probe, states, task, directory, config=config, probe_config=ONE, head=head)
    return place, states, probe


def targets_of(task: Task) -> SoftTargets:
    from probekd.targets import gold_targets

    train = task.rows("train")
    return gold_targets([e.id for e in train], [e.answer for e in train], [len(e.options) for e in train])


def untrained(place: Path, teacher: Teacher, task: Task) -> Student:
    return distill(place, task, targets_of(task), config=settings(teacher))


def said(student: Student, task: Task) -> list[np.ndarray]:
    return student.predict_proba(task.rows("test"))


def close(a: list[np.ndarray], b: list[np.ndarray], atol: float = 2e-4) -> None:
    for mine, theirs in zip(a, b, strict=True):
        np.testing.assert_allclose(mine, theirs, atol=atol)


@pytest.mark.parametrize(("layout", "position", "family"), HEADED)
def test_before_training_it_says_what_the_probe_says(
    layout: str, position: str, family: str, teacher_of: TeacherOf, tmp_path: Path
) -> None:
    task, teacher = task_of(choice=True), teacher_of(family)
    place, states, probe = cut(teacher, task, layout, position, tmp_path / "start")
    student = untrained(place, teacher, task)
    theirs = [softmax(row) for row in probe.logits(states, [e.id for e in task.rows("test")])]
    assert max(p.max() for p in theirs) > 0.5  # it has something to say
    close(said(student, task), theirs)
    assert student.network.config.num_hidden_layers == DEPTH
    assert student.info.num_pool_rows == 0 and student.info.base_model == Path(teacher.name).name
    shown = run_card(student)
    assert shown in ("one option", "another option")
    row = Example(id="x", question="some question", options=("one option", "another option"))
    assert shown == row.options[student.predict_proba([row])[0].argmax()]


@pytest.mark.parametrize(("choice", "layout", "position", "family"), PLAIN)
def test_what_reads_the_last_token_is_a_plain_sequence_classifier(
    choice: bool, layout: str, position: str, family: str, teacher_of: TeacherOf, tmp_path: Path
) -> None:
    task, teacher, shared = task_of(choice), teacher_of(family), position != "answer"
    place, states, probe = cut(teacher, task, layout, position, tmp_path / "start")
    student = untrained(place, teacher, task)
    assert not (student.directory / HEAD_FILE).exists()
    plain = AutoModelForSequenceClassification.from_pretrained(student.directory).eval()
    tokenizer = AutoTokenizer.from_pretrained(student.directory)
    prompts, mine = student.model.prompts, said(student, task)
    for row, found in zip(task.rows("test"), mine, strict=True):
        text = prompts.context(row, layout) + ("" if shared else prompts.cue)
        texts = [text + prompts.joiner + option for option in row.options] if shared else [text]
        with torch.no_grad():
            scores = [plain(**tokenizer(t, return_tensors="pt")).logits[0].numpy() for t in texts]
        close([found], [softmax(np.concatenate(scores))])
    # The reader, fitted anew to what the final norm makes of its states.
    view = View.of(states, Reader(layout=layout, position=position, depth=DEPTH, l2=0.3), find_norm(plain.base_model))
    refitted = fit_probes(view, task, config=ONE.model_copy(update={"positions": (position,)}))
    refitted = replace(refitted, flattery=probe.flattery)  # what chose the reader was flattered as much
    ids = [e.id for e in task.rows("test")]
    theirs = [softmax(row) for row in refitted.logits(view, ids)]
    assert [p.argmax() for p in mine] == [p.argmax() for p in theirs]
    if shared:
        close(mine, theirs)  # a K-way head has lost its bias, and says nearly the same
    named = Example(id="x", question="some text", options=task.labels)
    if choice:
        named = replace(named, question="some question", options=("one option", "another option"))
    assert run_card(student) == named.options[student.predict_proba([named])[0].argmax()]


def run_card(student: Student) -> str:
    """What the code of the model card prints."""
    code = (student.directory / "README.md").read_text().split("```python\n")[1].split("```")[0]
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed):
        exec(code.replace("path/to/this/directory", str(student.directory)), {})
    return printed.getvalue().strip()


@pytest.mark.parametrize(("position", "lora"), [("option_mean", LoraConfig(rank=2)), ("option_end", None)])
def test_it_can_be_trained_further_and_read_again(
    position: str, lora: LoraConfig | None, teacher_of: TeacherOf, tmp_path: Path
) -> None:
    if lora:
        pytest.importorskip("peft")
    task, teacher = task_of(choice=True), teacher_of("llama")
    place, _, _ = cut(teacher, task, "branched", position, tmp_path / "start")
    before = untrained(place, teacher, task)
    config = settings(teacher, epochs=6, lora=lora, learning_rate=5e-3)
    student = distill(place, task, targets_of(task), config=config, output_dir=tmp_path / "student")
    again = Student.load(tmp_path / "student")
    close(said(student, task), said(again, task), atol=0)
    train = task.rows("train")
    losses = [
        -np.mean([np.log(p[e.answer]) for p, e in zip(s.predict_proba(train), train, strict=True)])
        for s in (before, student)
    ]
    assert losses[1] < 0.9 * losses[0]
    assert not torch.equal(student.network.score.weight, before.network.score.weight)  # an adapter leaves the head free
    assert not list((tmp_path / "student").glob("adapter*"))


def test_labels_alone_start_from_a_head_that_knows_no_probe(teacher_of: TeacherOf, tmp_path: Path) -> None:
    task, teacher = task_of(choice=True), teacher_of("llama")
    place, _, _ = cut(teacher, task, *MEAN, tmp_path / "start", head="fresh")
    other, _, _ = cut(teacher, task, *MEAN, tmp_path / "other")
    heads = [untrained(p, teacher, task).network.score.weight.detach() for p in (place, other)]
    assert abs(float(torch.corrcoef(torch.cat(heads))[0, 1])) < 0.5
    assert float(heads[0].std()) == pytest.approx(0.02, rel=0.3)
    student = distill(place, task, None, method="labels", config=settings(teacher, label_epochs=2))
    assert student.info.method == "labels" and len(said(student, task)) == 9
    assert (student.directory / READING_FILE).is_file()


def probe_with(readers: list[Reader], tried: list[tuple[Reader, float]]) -> Any:
    candidates = [Candidate(reader=r, accuracy=0.5, nll=nll, ece=0.1) for r, nll in tried]
    return SimpleNamespace(readers=tuple(readers), candidates=candidates)


def test_the_reader_is_the_best_that_a_student_can_have() -> None:
    task = task_of(choice=True)
    mean = Reader(layout="branched", position="option_mean", depth=3, l2=0.1)
    wide, deep = replace(mean, window=5, depth=2), replace(mean, depth=0)
    listed, curved = replace(mean, layout="listed"), replace(mean, family="mlp", depth=1)
    tried = [(wide, 0.1), (deep, 0.2), (curved, 0.3), (listed, 0.4), (mean, 0.5)]
    assert single_reader(probe_with([mean, listed], tried), task, None) == mean  # the probe's own
    assert single_reader(probe_with([wide], tried), task, None) == listed
    shuffled = replace(task, prompt=task.prompt.model_copy(update={"permutations": 2}))
    assert single_reader(probe_with([wide], tried), shuffled, None) == mean
    shallow = replace(mean, depth=1)
    assert single_reader(probe_with([mean], [*tried, (shallow, 0.9)]), task, 1) == shallow
    with pytest.raises(ConfigError, match=r"reads one state and sees a row in one order at depth 2 \(student\.depth\)"):
        single_reader(probe_with([mean], tried), task, 2)


def test_blocks_that_are_not_the_teachers_are_noticed(teacher_of: TeacherOf, tmp_path: Path) -> None:
    task, teacher = task_of(choice=True), teacher_of("llama")
    states, probe = read(teacher, task, *MEAN)
    with pytest.raises(
        ModelError, match=r"its first 2 blocks by themselves give logits that differ by .* from the probe's"
    ):
        cut_student(
            teacher_of("qwen3").name,
            probe,
            states,
            task,
            tmp_path / "start",
            config=settings(teacher),
            probe_config=ONE,
        )
    assert not (tmp_path / "start").exists()


def test_encoders_and_whole_teachers_are_refused(teacher_of: TeacherOf, tiny_bert: Path, tmp_path: Path) -> None:
    task, teacher = task_of(choice=True), teacher_of("llama")
    states, probe = read(teacher, task, *MEAN)
    with pytest.raises(ModelError, match="bert is not a decoder"):
        cut_student(tiny_bert, probe, states, task, tmp_path, config=settings(teacher), probe_config=ONE)
    with pytest.raises(ModelError, match=r"it has no cut\.json; a cut student starts from what"):
        untrained(Path(teacher.name), teacher, task)
