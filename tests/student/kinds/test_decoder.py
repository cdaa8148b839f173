"""What label_token and option_likelihood have in common, against plain Transformers one row at a time."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from tiny import CAUSAL, CHAT_TEMPLATE
from transformers import AutoModelForCausalLM, AutoTokenizer
from words import IN_WORDS, answer, by_hand, load

from probekd.config import KindName, PromptConfig, StudentConfig
from probekd.errors import DataError, ModelError
from probekd.student import Student, distill, predict_file
from probekd.student.kinds import kind_named
from probekd.student.kinds.decoder import shown
from probekd.student.trainer import seeded
from probekd.tasks.base import Task

FAMILIES = (*CAUSAL, "opt", "bloom", "mistral")
Dir = Callable[[str], Path]


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("name", IN_WORDS)
def test_logits_of_a_padded_batch_are_those_of_plain_transformers(
    name: KindName, family: str, model_dir: Dir, choices: Task
) -> None:
    rows = choices.rows("train")
    with torch.no_grad():
        logits = answer(load(name, model_dir(family), choices), rows)
    assert (logits.dtype, logits.shape) == (torch.float32, (4, 5))
    for row, found in zip(rows, logits, strict=True):
        k = len(row.options)
        np.testing.assert_allclose(found[:k], by_hand(name, model_dir(family), choices, row), atol=2e-4)
        assert (found[k:] == -torch.inf).all()


@pytest.mark.parametrize("prompt", [{"shots": 2, "shots_from": "dev"}, {"chat": True, "system": "Be brief."}])
@pytest.mark.parametrize("name", IN_WORDS)
def test_the_prompt_is_the_teachers(
    name: KindName, prompt: dict[str, object], model_dir: Dir, choices: Task, tmp_path: Path
) -> None:
    tokenizer = AutoTokenizer.from_pretrained(model_dir("llama"))
    tokenizer.chat_template = CHAT_TEMPLATE
    AutoModelForCausalLM.from_pretrained(model_dir("llama")).save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    splits = {"train": choices.splits["train"], "dev": (*choices.splits["test"], *choices.splits["train"][:3])}
    task = replace(choices, splits=splits, prompt=PromptConfig(**prompt))
    student = load(name, tmp_path, task, max_length=512)
    with torch.no_grad():
        logits = answer(student, task.rows("train")[:2])
    for row, found in zip(task.rows("train")[:2], logits, strict=True):
        np.testing.assert_allclose(found[: len(row.options)], by_hand(name, tmp_path, task, row), atol=2e-4)


def test_no_logits_but_those_that_are_read_are_computed(model_dir: Dir, choices: Task) -> None:
    for name, places in (("label_token", 4), ("option_likelihood", None)):
        student = load(name, model_dir("llama"), choices)
        shapes = []
        handle = student.network.lm_head.register_forward_hook(lambda m, i, o, found=shapes: found.append(o.shape))
        encoded = student.encode(choices.rows("train"))
        student.logits(student.network, student.collate(encoded))
        handle.remove()
        places = places or sum(len(row.said) for row in encoded)
        assert shapes == [(1, places, student.network.config.vocab_size)]
        whole = student.network(torch.tensor([encoded[0].sequences[0]["input_ids"]])).logits
        assert whole.shape[1] == len(encoded[0].sequences[0]["input_ids"])  # nothing of ours stays on the model


@pytest.mark.parametrize("name", IN_WORDS)
def test_states_to_match_are_those_after_what_is_read(name: KindName, model_dir: Dir, choices: Task) -> None:
    student = load(name, model_dir("gpt2"), choices)
    encoded = student.encode(choices.rows("train"))
    batch = student.collate(encoded)
    plain = AutoModelForCausalLM.from_pretrained(model_dir("gpt2")).transformer.eval()
    with torch.no_grad():
        found = student.states(student.network.transformer(batch["input_ids"]).last_hidden_state, batch)
        expected = [
            plain(torch.tensor([s["input_ids"]])).last_hidden_state[0, -1] for row in encoded for s in row.sequences
        ]
    assert len(found) == (sum(row.options for row in encoded) if student.reads_options else len(encoded))
    torch.testing.assert_close(found, torch.stack(expected), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("name", IN_WORDS)
def test_gradients_are_those_of_plain_transformers(name: KindName, model_dir: Dir, choices: Task) -> None:
    directory, row = model_dir("qwen2"), choices.rows("train")[1]
    student = load(name, directory, choices)
    loss = answer(student, [row]).log_softmax(-1)[0, row.answer]
    loss.backward()
    plain = AutoModelForCausalLM.from_pretrained(directory).eval()
    encoded = student.encode([row])[0]
    scores = [torch.zeros(()) for _ in row.options]
    for said in encoded.said:
        words = plain(torch.tensor([encoded.sequences[said.sequence]["input_ids"]])).logits[0].log_softmax(-1)
        scores[said.option] = scores[said.option] + words[said.at, said.token]
    torch.stack(scores).log_softmax(0)[row.answer].backward()
    for (where, mine), theirs in zip(student.network.named_parameters(), plain.parameters(), strict=True):
        torch.testing.assert_close(mine.grad, theirs.grad, rtol=1e-3, atol=1e-5, msg=where)


@pytest.mark.parametrize("name", IN_WORDS)
def test_a_prompt_that_does_not_fit_is_refused_and_never_cut(name: KindName, model_dir: Dir, choices: Task) -> None:
    lengths = [row.tokens for row in load(name, model_dir("llama"), choices).encode(choices.rows("train"))]
    fits = load(name, model_dir("llama"), choices, max_length=max(lengths))
    assert not any(row.cut for row in fits.encode(choices.rows("train")))
    short = load(name, model_dir("llama"), choices, max_length=max(lengths) - 1)
    with pytest.raises(DataError, match=rf"row '\w': its prompt has {max(lengths)} tokens.*raise student\.max_length"):
        short.encode(choices.rows("train"))


@pytest.mark.parametrize("name", IN_WORDS)
def test_rows_can_be_encoded_before_the_network_is_there(name: KindName, model_dir: Dir, choices: Task) -> None:
    directory = model_dir("llama")
    ready = kind_named(name).prepare(directory, choices, StudentConfig(model=str(directory)))
    assert ready.network is None
    assert ready.encode(choices.rows()) == load(name, directory, choices).encode(choices.rows())


@pytest.mark.parametrize("name", IN_WORDS)
def test_an_encoder_cannot_answer_in_words(name: KindName, tiny_bert: Path, choices: Task) -> None:
    with pytest.raises(ModelError, match="bert is not a decoder, so it cannot answer in words"):
        load(name, tiny_bert, choices)


def test_a_body_without_its_words_is_refused(model_dir: Dir, choices: Task, tmp_path: Path) -> None:
    AutoTokenizer.from_pretrained(model_dir("llama")).save_pretrained(tmp_path)
    with seeded(0):
        AutoModelForCausalLM.from_pretrained(model_dir("llama")).model.save_pretrained(tmp_path)
    with pytest.raises(ModelError, match=r"1 weights of the model are missing, such as lm_head"):
        load("label_token", tmp_path, choices)


def test_what_the_prompts_show_is_kept_and_no_more(choices: Task) -> None:
    rows = [replace(e, subject=s) for e, s in zip(reversed(choices.rows("train")), "xyxx", strict=True)]
    prompt = PromptConfig(shots=1, permutations=3)
    known = shown(replace(choices, splits={"train": choices.splits["test"], "dev": tuple(rows)}, prompt=prompt))
    assert [e.id for e in known.rows("dev")] == ["c", "b"]  # one of each subject; "d" has no answer
    assert list(known.splits) == ["dev"]
    assert known.prompt == PromptConfig(shots=1)
    assert shown(choices).splits == {}


@pytest.mark.parametrize("name", IN_WORDS)
def test_a_student_is_read_again_without_its_task(
    name: KindName, model_dir: Dir, choices: Task, tmp_path: Path
) -> None:
    splits = {**choices.splits, "train": choices.splits["train"][:3], "dev": choices.splits["test"]}
    task = replace(choices, splits=splits, prompt=PromptConfig(shots=1, instruction="Choose."))
    config = StudentConfig(
        model=str(model_dir("llama")), kind=name, label_epochs=1, early_stopping=None, likelihood="per byte"
    )
    student = distill(config.model, task, None, method="labels", config=config, output_dir=tmp_path / "student")
    again = Student.load(tmp_path / "student")
    assert again.info == student.info
    assert again.info.student_kind == name
    row = task.rows("test")[0]
    scores = by_hand(name, tmp_path / "student", task, row, "per byte")
    for probs in (student.predict_proba([row])[0], again.predict_proba([row])[0]):
        np.testing.assert_allclose(probs, torch.tensor(scores).softmax(0), atol=1e-4)
    record = json.loads((tmp_path / "student/probekd.json").read_text())
    assert record["prompt"] == {"instruction": "Choose.", "shots": 1}
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "student")
    original = AutoTokenizer.from_pretrained(model_dir("llama"))
    assert (tokenizer.padding_side, tokenizer.pad_token) == (original.padding_side, original.pad_token)


@pytest.mark.parametrize("name", IN_WORDS)
@pytest.mark.parametrize("told", ["instruction", "shots"])
def test_a_file_is_predicted_with_the_subjects_that_its_prompts_show(
    name: KindName, told: str, model_dir: Dir, choices: Task, tmp_path: Path
) -> None:
    about = {e.id: ("plants", "animals")[i % 2] for i, e in enumerate(choices.rows())}
    splits = {k: tuple(replace(e, subject=about[e.id]) for e in rows) for k, rows in choices.splits.items()}
    shown = (*splits["train"][:1], replace(splits["train"][1], id="more"))
    prompt = PromptConfig(shots=1) if told == "shots" else PromptConfig(instruction="About {{ subject }}.")
    task = replace(choices, splits={**splits, "train": splits["train"][:3], "dev": shown}, prompt=prompt)
    config = StudentConfig(model=str(model_dir("llama")), kind=name, label_epochs=1, early_stopping=None)
    student = distill(config.model, task, None, method="labels", config=config, output_dir=tmp_path / "student")
    rows = task.rows("test")
    lines = [{"question": e.question, "choices": list(e.options), "subject": e.subject} for e in rows]
    source, out = tmp_path / "in.jsonl", tmp_path / "out.jsonl"
    source.write_text("".join(json.dumps(line) + "\n" for line in lines))
    predict_file(tmp_path / "student", source, out)
    found = [json.loads(line)["probs"] for line in out.read_text().splitlines()]
    np.testing.assert_allclose(found, np.array(student.predict_proba(rows)), atol=1e-6)
    source.write_text("".join(json.dumps({k: v for k, v in line.items() if k != "subject"}) + "\n" for line in lines))
    with pytest.raises(DataError, match="no column 'subject'; prompts of the task choices show it, so add the column"):
        predict_file(tmp_path / "student", source, tmp_path / "again.jsonl")


@pytest.mark.parametrize("name", IN_WORDS)
@pytest.mark.parametrize("which", ["choices", "kinds_of_text"])
def test_the_code_of_the_model_card_runs(
    name: KindName, which: str, model_dir: Dir, request: pytest.FixtureRequest, capsys: pytest.CaptureFixture[str]
) -> None:
    task = replace(request.getfixturevalue(which))
    task = replace(task, splits={"train": task.splits["train"][:3]})
    config = StudentConfig(model=str(model_dir("llama")), kind=name, label_epochs=1, early_stopping=None)
    student = distill(config.model, task, None, method="labels", config=config)
    card = (student.directory / "README.md").read_text()
    assert "pipeline_tag: text-generation" in card
    code = card.split("```python")[1].split("```")[0].replace("path/to/this/directory", str(student.directory))
    exec(compile(code, "README.md", "exec"), {})
    options = ("one option", "another option") if which == "choices" else task.labels
    question = "some question" if which == "choices" else "some text"
    (probs,) = student.predict_proba([replace(task.rows("train")[0], question=question, options=options)])
    said = "AB" if (which, name) == ("choices", "label_token") else options
    assert capsys.readouterr().out.strip() == said[probs.argmax()]
