from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest
import torch
from tiny import CAUSAL

from probekd.config import PromptConfig
from probekd.errors import ModelError
from probekd.prompts import Prompt, PromptEncoder
from probekd.tasks.base import Task
from probekd.teacher import passes as passes_module
from probekd.teacher.check import check_pass, packable
from probekd.teacher.extract import Wanted, read_states
from probekd.teacher.load import Teacher
from probekd.teacher.packing import branches_of
from probekd.teacher.passes import Budget, plan_work, run_work

TeacherOf = Callable[[str], Teacher]


def full_logits(teacher: Teacher, tokens: tuple[int, ...]) -> torch.Tensor:
    with torch.inference_mode():
        return teacher.model(input_ids=torch.tensor([tokens])).logits[0].double()


@pytest.mark.parametrize("family", CAUSAL)
def test_label_logits_are_the_models_own(family: str, teacher_of: TeacherOf, choices: Task) -> None:
    teacher = teacher_of(family)
    encoder = PromptEncoder(teacher.tokenizer, choices)
    rows = choices.rows()
    prompts = [encoder.encode(e, "listed") for e in rows]
    tokens = [encoder.label_tokens(e) for e in rows]
    reading = read_states(teacher, prompts, Wanted(positions=[], depths=[], max_options=5, label_tokens=tokens))
    assert reading.label_logits is not None and reading.option_loglik is None
    for got, prompt, labels in zip(reading.label_logits, prompts, tokens, strict=True):
        assert len(set(labels)) == len(labels)
        expected = full_logits(teacher, prompt.sequences[0].tokens)[-1, labels].numpy()
        np.testing.assert_allclose(got[: len(labels)], expected, rtol=1e-4, atol=1e-4)
        assert np.isnan(got[len(labels) :]).all()


@pytest.mark.parametrize("family", CAUSAL)
def test_option_likelihood_is_the_models_own(family: str, teacher_of: TeacherOf, choices: Task) -> None:
    teacher = teacher_of(family)
    encoder = PromptEncoder(teacher.tokenizer, choices)
    prompts = [encoder.encode(e, "branched") for e in choices.rows()]
    reading = read_states(teacher, prompts, Wanted(positions=[], depths=[], max_options=5, likelihood=True))
    assert reading.option_loglik is not None and reading.label_logits is None
    for got, example in zip(reading.option_loglik, choices.rows(), strict=True):
        prefix = f"Question: {example.question}\nAnswer:"
        start = len(teacher.tokenizer(prefix)["input_ids"])
        for value, option in zip(got[: len(example.options)], example.options, strict=True):
            ids = teacher.tokenizer(f"{prefix} {option}")["input_ids"]
            logp = full_logits(teacher, tuple(ids)).log_softmax(-1)
            expected = sum(float(logp[t - 1, ids[t]]) for t in range(start, len(ids)))
            assert value == pytest.approx(expected, rel=1e-4, abs=1e-4)
        assert np.isnan(got[len(example.options) :]).all()


def test_likelihood_in_small_pieces_is_the_same(llama: Teacher, choices: Task, monkeypatch: pytest.MonkeyPatch) -> None:
    encoder = PromptEncoder(llama.tokenizer, choices)
    prompts = [encoder.encode(e, "branched") for e in choices.rows()]
    whole = read_states(llama, prompts, Wanted(positions=[], depths=[], max_options=5, likelihood=True)).option_loglik
    monkeypatch.setattr("probekd.teacher.vocabulary._AT_ONCE", 1)
    parts = read_states(llama, prompts, Wanted(positions=[], depths=[], max_options=5, likelihood=True)).option_loglik
    np.testing.assert_allclose(parts, whole, rtol=1e-5)


def test_labels_that_begin_alike_share_their_token(llama: Teacher, kinds_of_text: Task) -> None:
    row = kinds_of_text.rows()[0]
    prompt = PromptEncoder(llama.tokenizer, kinds_of_text).encode(row, "listed")
    reading = read_states(llama, [prompt], Wanted(positions=[], depths=[], max_options=3, label_tokens=[[50, 60, 50]]))
    logits = full_logits(llama, prompt.sequences[0].tokens)[-1]
    assert reading.label_logits is not None
    expected = [logits[50] - np.log(2), logits[60], logits[50] - np.log(2)]
    np.testing.assert_allclose(reading.label_logits[0], expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("family", ["llama", "gemma3", "bert"])
def test_batch_size_changes_nothing(family: str, teacher_of: TeacherOf, choices: Task) -> None:
    teacher = teacher_of(family)
    encoder = PromptEncoder(teacher.tokenizer, choices, encoder=teacher.encoder)
    prompts = [encoder.encode(e, "branched") for e in choices.rows()]
    depths = range(teacher.depths + 1)
    readings = [
        read_states(
            teacher,
            prompts,
            Wanted(
                positions=["option_end", "option_mean"],
                depths=depths,
                max_options=5,
                likelihood=not teacher.encoder,
            ),
            packed=not teacher.encoder,
            budget=Budget(budget),
        )
        for budget in (1, 100, 10**6)
    ]
    for other in readings[1:]:
        for position, states in readings[0].states.items():
            # Relative to the size of the states: an element near zero has no relative precision of its own.
            size = float(states.abs().max())
            torch.testing.assert_close(other.states[position], states, rtol=0, atol=1e-5 * size)
        if not teacher.encoder:
            np.testing.assert_allclose(other.option_loglik, readings[0].option_loglik, rtol=1e-4)


def test_absent_options_are_zero(llama: Teacher, choices: Task) -> None:
    encoder = PromptEncoder(llama.tokenizer, choices)
    rows = choices.rows()
    prompts = [encoder.encode(e, "listed") for e in rows]
    states = read_states(llama, prompts, Wanted(positions=["option_end"], depths=[1], max_options=6)).states[
        "option_end"
    ]
    for i, example in enumerate(rows):
        assert bool((states[0, i, : len(example.options)].abs().sum(-1) > 0).all())
        assert not bool(states[0, i, len(example.options) :].any())


@pytest.fixture
def prompt(llama: Teacher, choices: Task) -> Prompt:
    return PromptEncoder(llama.tokenizer, choices).encode(choices.rows()[0], "listed")


def test_check_pass_accepts_a_sound_teacher(llama: Teacher, prompt: Prompt) -> None:
    check_pass(llama, prompt)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda t: {"blocks": (t.blocks[1], *t.blocks[1:])}, "our state at depth 0 differs"),
        (lambda t: {"blocks": (t.blocks[0], t.blocks[0], t.blocks[2])}, "our state at depth 2 differs"),
        (lambda t: {"norm": None}, "our state at depth 3 differs"),
        (lambda t: {"head_weight": t.body.embed_tokens.weight}, "our logits differs"),
        (lambda t: {"softcap": 1.0}, "our logits differs"),
        (lambda t: {"head_bias": torch.ones(len(t.tokenizer))}, "our logits differs"),
        (lambda t: {"logit_scale": 2.0}, "our logits differs"),
    ],
    ids=["first block", "shifted depth", "norm", "head", "softcap", "bias", "scale"],
)
def test_check_pass_finds_a_teacher_taken_apart_wrongly(
    change: Callable[[Teacher], dict[str, object]], message: str, llama: Teacher, prompt: Prompt
) -> None:
    broken = replace(llama, **change(llama))
    with pytest.raises(ModelError, match=message):
        check_pass(broken, prompt)


@pytest.mark.parametrize("when", ["checked", "packed", "prefix"])
def test_a_row_that_does_not_fit_into_memory(
    when: str, llama: Teacher, choices: Task, prompt: Prompt, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is no fault of the architecture, and no reason to read all rows in another way."""

    def full(*_: object, **__: object) -> None:
        raise torch.OutOfMemoryError("out of memory: tried to allocate 2 GiB")

    handle = llama.blocks[1].register_forward_pre_hook(full)
    says = r"one row of \d+ tokens does not fit into memory \(out of memory: tried.*set teacher.memory: streamed"
    try:
        with pytest.raises(ModelError, match=says):
            if when == "checked":
                check_pass(llama, prompt)
            elif when == "packed":
                monkeypatch.setattr("probekd.teacher.check._every_kind", lambda _: 2)
                packable(llama, [prompt])
            else:
                shared = replace(choices, prompt=PromptConfig(instruction="the red cow eats grass, " * 30))
                prompts = [PromptEncoder(llama.tokenizer, shared).encode(e, "listed") for e in shared.rows()] * 20
                plan = plan_work(llama, [branches_of(i, p) for i, p in enumerate(prompts)], packed=True)
                assert plan[0].prefix is not None
                run_work(llama, plan, [3], lambda *_: None, Budget(10_000))
    finally:
        handle.remove()


def test_check_pass_needs_a_model_that_gives_its_states(
    llama: Teacher, prompt: Prompt, monkeypatch: pytest.MonkeyPatch
) -> None:
    forward = type(llama.model).forward

    def without(*given: object, **options: object) -> object:
        out = forward(*given, **options)
        out.hidden_states = None
        return out

    monkeypatch.setattr(llama.model, "forward", without.__get__(llama.model))
    with pytest.raises(ModelError, match="does not give its hidden states"):
        check_pass(llama, prompt)


def test_check_pass_finds_a_norm_applied_in_the_hook(
    llama: Teacher, prompt: Prompt, monkeypatch: pytest.MonkeyPatch
) -> None:
    hooks = passes_module.state_hooks

    def normed(teacher: Teacher, depths: object, visit: Callable[[int, torch.Tensor], None], **options: bool) -> object:
        return hooks(teacher, depths, lambda k, h: visit(k, teacher.norm(h) if k == teacher.depths else h), **options)

    monkeypatch.setattr(passes_module, "state_hooks", normed)
    with pytest.raises(ModelError, match="our state at depth 3 differs"):
        check_pass(llama, prompt)


def test_states_whose_sum_overflows_are_finite(llama: Teacher, choices: Task) -> None:
    prompts = [PromptEncoder(llama.tokenizer, choices).encode(e, "listed") for e in choices.rows()]

    def enlarge(_: object, __: object, output: torch.Tensor) -> torch.Tensor:
        return torch.full_like(output, torch.finfo(output.dtype).max)

    handle = llama.blocks[1].register_forward_hook(enlarge)
    try:
        wanted = Wanted(positions=["answer"], depths=[2], max_options=5)
        assert bool(read_states(llama, prompts, wanted).states["answer"].isfinite().all())
    finally:
        handle.remove()


def test_states_that_are_not_finite_name_depth_position_and_row(llama: Teacher, choices: Task) -> None:
    encoder = PromptEncoder(llama.tokenizer, choices)
    prompts = [encoder.encode(e, "listed") for e in choices.rows()]

    def spoil(_: object, __: object, output: torch.Tensor) -> torch.Tensor:
        output = output.clone()
        output[:, -1, 0] = torch.inf
        return output

    handle = llama.blocks[1].register_forward_hook(spoil)
    try:
        with pytest.raises(ModelError, match=r"depth 2, position answer, row '[a-e]' is not finite"):
            read_states(llama, prompts, Wanted(positions=["answer"], depths=[0, 1, 2], max_options=5))
        with pytest.raises(ModelError, match=r"depth 2, row 'a' is not finite"):
            check_pass(llama, prompts[0])
    finally:
        handle.remove()
