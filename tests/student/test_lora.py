from __future__ import annotations

import shutil
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification, AutoTokenizer

from probekd.config import KindName, LoraConfig, StudentConfig
from probekd.errors import ConfigError
from probekd.progress import Silent
from probekd.student import Student, distill
from probekd.student.kinds import StudentKind, kind_named
from probekd.student.lessons import gold_lessons
from probekd.student.trainer import seeded
from probekd.student.training import Job, prepare
from probekd.tasks.base import Task

Dir = Callable[[str], Path]
CASES: list[tuple[KindName, str, str]] = [
    ("head", "bert", "choices"),
    ("head", "bert", "kinds_of_text"),
    ("head", "gpt2", "kinds_of_text"),
    ("head", "llama-tied", "kinds_of_text"),
    ("label_token", "llama", "choices"),
    ("label_token", "qwen2", "kinds_of_text"),
    ("option_likelihood", "llama", "choices"),
]


def load(kind: KindName, directory: Path, task: Task, lora: LoraConfig | None) -> StudentKind:
    with seeded(3):
        student = kind_named(kind).load(directory, task, StudentConfig(model=str(directory), kind=kind, lora=lora))
    student.network.eval()
    return student


def answer(student: StudentKind, task: Task) -> torch.Tensor:
    with torch.no_grad():
        return student.logits(student.network, student.collate(student.encode(task.rows("train"))))


@pytest.mark.parametrize(("kind", "family", "task_name"), CASES)
def test_a_merged_student_answers_as_its_adapter_did(
    kind: KindName, family: str, task_name: str, model_dir: Dir, request: pytest.FixtureRequest, tmp_path: Path
) -> None:
    task = request.getfixturevalue(task_name)
    student = load(kind, model_dir(family), task, LoraConfig(rank=4, dropout=0.1))
    before = answer(student, task)
    with torch.no_grad():
        for name, parameter in student.network.named_parameters():
            if "lora_B" in name:
                torch.nn.init.normal_(parameter, std=0.2)
    adapted = answer(student, task)
    assert (adapted - before).nan_to_num(0).abs().max() > 0.01
    student.save(tmp_path)
    assert not list(tmp_path.glob("adapter*"))
    assert not any("lora" in name for name in load_file(tmp_path / "model.safetensors"))
    torch.testing.assert_close(answer(load(kind, tmp_path, task, None), task), adapted, rtol=1e-4, atol=1e-4)


def test_a_checkpoint_is_of_the_frozen_weights_too(model_dir: Dir, choices: Task, tmp_path: Path) -> None:
    """Else factors that were trained beside one model would go on beside another of its shape."""
    other = tmp_path / "other"
    shutil.copytree(model_dir("llama"), other)
    weights = load_file(other / "model.safetensors")
    save_file({n: w * 1.1 for n, w in weights.items()}, other / "model.safetensors", metadata={"format": "pt"})
    keys = []
    for directory in (model_dir("llama"), other, model_dir("llama")):
        config = StudentConfig(model=str(directory), kind="label_token", lora=LoraConfig(rank=2))
        job = Job(model=directory, task=choices, config=config, epochs=1, seed=0, progress=Silent(), root=None)
        rows = [e for e in choices.rows("train") if e.answer is not None]
        keys.append(prepare(job, rows, gold_lessons(rows)).key)
    assert keys[0] == keys[2] != keys[1]


@pytest.mark.parametrize(("kind", "family", "task_name"), CASES)
def test_factors_and_heads_alone_are_trained(
    kind: KindName, family: str, task_name: str, model_dir: Dir, request: pytest.FixtureRequest
) -> None:
    student = load(kind, model_dir(family), request.getfixturevalue(task_name), LoraConfig(rank=1))
    trained = {n: p for n, p in student.network.named_parameters() if p.requires_grad}
    heads = {n for n in trained if "lora_" not in n}
    assert all(".classifier." in n or ".score." in n for n in heads)
    assert bool(heads) == (kind == "head")
    assert 0 < sum(p.numel() for p in trained.values()) < 0.03 * sum(p.numel() for p in student.network.parameters())


def test_a_pooler_that_was_never_saved_is_trained_too(model_dir: Dir, kinds_of_text: Task, tmp_path: Path) -> None:
    AutoTokenizer.from_pretrained(model_dir("bert")).save_pretrained(tmp_path)
    with seeded(0):
        model = AutoModelForSequenceClassification.from_pretrained(model_dir("bert"))
    weights = {k: v for k, v in model.bert.state_dict().items() if "pooler" not in k}
    model.bert.save_pretrained(tmp_path, state_dict=weights)
    student = load("head", tmp_path, kinds_of_text, LoraConfig())
    trained = [n for n, p in student.network.named_parameters() if p.requires_grad]
    assert any("pooler.dense.modules_to_save" in n for n in trained)


def test_training_changes_the_targets_and_nothing_else(model_dir: Dir, choices: Task, tmp_path: Path) -> None:
    task = Task(name="choices", kind="multiple_choice", splits={"train": choices.splits["train"][:3]})
    directory = model_dir("llama")
    lora = LoraConfig(rank=4, targets=("q_proj", "up_proj"))
    config = StudentConfig(
        model=str(directory), kind="label_token", label_epochs=5, early_stopping=None, learning_rate=1e-2, lora=lora
    )
    student = distill(directory, task, None, method="labels", config=config, output_dir=tmp_path / "student")
    base, trained = (load_file(path / "model.safetensors") for path in (directory, tmp_path / "student"))
    assert set(base) == set(trained)
    changed = {name for name in base if not torch.equal(base[name], trained[name])}
    assert changed == {name for name in base if "q_proj" in name or "up_proj" in name}
    plain = AutoModelForCausalLM.from_pretrained(tmp_path / "student").eval()
    row = task.rows("train")[0]
    ids = student.model.encode([row])[0]
    with torch.no_grad():
        words = plain(torch.tensor([ids.sequences[0]["input_ids"]])).logits[0, -1]
    np.testing.assert_allclose(
        student.predict_proba([row])[0], words[[s.token for s in ids.said]].softmax(0), atol=1e-5
    )


def test_lora_learns(kinds_student: Student, kinds: Task) -> None:
    """A student that knows the kinds learns to call each by the name of the next."""
    rows = tuple(replace(e, answer=((e.answer or 0) + 1) % 3) for e in kinds.splits["train"])
    base = kinds_student.directory
    config = StudentConfig(
        model=str(base), label_epochs=10, early_stopping=None, learning_rate=1e-2, batch_size=8, lora=LoraConfig(rank=2)
    )
    task = replace(kinds, splits={"train": rows})
    student = distill(base, task, None, method="labels", config=config)
    test = kinds.rows("test")
    probs = student.predict_proba(test)
    assert np.mean([p.argmax() == ((e.answer or 0) + 1) % 3 for p, e in zip(probs, test, strict=True)]) >= 0.9


def test_targets_that_are_not_there_are_refused(model_dir: Dir, kinds_of_text: Task) -> None:
    with pytest.raises(ConfigError, match=r"targets: quary cannot be adapted in .*\(bert\); .*: .*dense, key, query"):
        load("head", model_dir("bert"), kinds_of_text, LoraConfig(targets=("quary",)))


def test_an_architecture_that_peft_does_not_know_needs_targets(model_dir: Dir, kinds_of_text: Task) -> None:
    with pytest.raises(ConfigError, match=r"targets: peft knows none for .*\(phi3\); .*: .*o_proj, qkv_proj"):
        load("head", model_dir("phi3"), kinds_of_text, LoraConfig())
    load("head", model_dir("phi3"), kinds_of_text, LoraConfig(targets=("qkv_proj",)))


def test_without_peft_the_extra_is_named(model_dir: Dir, kinds_of_text: Task, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "peft", None)
    with pytest.raises(ConfigError, match=r"pip install 'probekd\[peft\]'"):
        load("head", model_dir("bert"), kinds_of_text, LoraConfig())
