"""What the head says in slices, against all of its logits at once."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch.nn.functional import log_softmax

from probekd.teacher.linears import product
from probekd.teacher.load import Teacher
from probekd.teacher.vocabulary import token_log_probs, vocabulary_logits

HEADS = ({}, {"softcap": 0.2}, {"logit_scale": 3.0}, {"softcap": 0.2, "logit_scale": 3.0, "bias": True}, {"bias": True})


def headed(teacher: Teacher, changes: dict[str, object]) -> Teacher:
    assert teacher.head_weight is not None
    rest = {k: v for k, v in changes.items() if k != "bias"}
    bias = torch.linspace(-2, 2, len(teacher.head_weight)) if "bias" in changes else None
    # A head whose logits differ enough for a slice's maximum to matter.
    return replace(teacher, head_weight=teacher.head_weight * 10, head_bias=bias, **rest)  # type: ignore[arg-type]


def by_hand(teacher: Teacher, hidden: torch.Tensor) -> torch.Tensor:
    assert teacher.head_weight is not None and teacher.norm is not None
    logits = torch.einsum("nd,vd->nv", teacher.norm(hidden).double(), teacher.head_weight.double())
    logits = logits + (0 if teacher.head_bias is None else teacher.head_bias.double())
    logits = logits * teacher.logit_scale
    return logits if teacher.softcap is None else torch.tanh(logits / teacher.softcap) * teacher.softcap


@pytest.mark.parametrize("at_once", [1, 70, 2**21])
@pytest.mark.parametrize("changes", HEADS, ids=lambda c: "-".join(c) or "plain")
def test_log_probabilities_are_those_of_all_logits(
    llama: Teacher, changes: dict[str, object], at_once: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("probekd.teacher.vocabulary._AT_ONCE", at_once)
    teacher = headed(llama, changes)
    generator = torch.Generator().manual_seed(0)
    hidden = 5 * torch.randn(6, teacher.width, generator=generator)
    at, tokens = torch.tensor([0, 0, 3, 5, 5, 2, 1]), torch.tensor([7, 0, 3, 21, 4, 9, 2])
    with torch.inference_mode():
        ours = token_log_probs(teacher, hidden, at, tokens)
        logits = by_hand(teacher, hidden)
        torch.testing.assert_close(ours.double(), log_softmax(logits, 1)[at, tokens], rtol=1e-5, atol=5e-5)
        torch.testing.assert_close(vocabulary_logits(teacher, hidden).double(), logits, rtol=1e-5, atol=5e-5)
        some = vocabulary_logits(teacher, hidden, tokens)
        torch.testing.assert_close(some.double(), logits[:, tokens], rtol=1e-5, atol=5e-5)


def test_all_of_the_logits_are_never_there_at_once(llama: Teacher, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("probekd.teacher.vocabulary._AT_ONCE", 60)
    sizes = []

    def watched(states: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
        sizes.append(states.shape[0] * weight.shape[0])
        return product(states, weight)

    monkeypatch.setattr("probekd.teacher.vocabulary.product", watched)
    with torch.inference_mode():
        token_log_probs(llama, torch.ones(6, llama.width), torch.tensor([0]), torch.tensor([1]))
    assert llama.head_weight is not None
    assert max(sizes) == 60 and sum(sizes) == 6 * len(llama.head_weight)
