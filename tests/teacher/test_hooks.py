from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from tiny import FAMILIES

from probekd.prompts import TokenSequence
from probekd.teacher.batching import PaddedBatch
from probekd.teacher.hooks import StopPass, entering, run_body, state_hooks
from probekd.teacher.load import Teacher
from probekd.teacher.packing import Branch

TOKENS = list(range(3, 30))


def padded(*sequences: list[int]) -> PaddedBatch:
    made = [TokenSequence(tokens=tuple(s), answer=len(s) - 1) for s in sequences]
    return PaddedBatch([Branch(row=i, turn=0, first=0, sequence=s) for i, s in enumerate(made)])


def ours(
    teacher: Teacher, sequences: list[list[int]], depths: list[int], *, stop: bool = True
) -> dict[int, torch.Tensor]:
    seen: dict[int, torch.Tensor] = {}
    with torch.inference_mode(), state_hooks(teacher, depths, lambda k, h: seen.update({k: h.clone()}), stop=stop):
        run_body(teacher, padded(*sequences))
    return seen


@pytest.mark.parametrize("family", FAMILIES)
def test_every_depth_is_transformers_own(family: str, teacher_of: Callable[[str], Teacher]) -> None:
    teacher = teacher_of(family)
    with torch.inference_mode():
        theirs = teacher.model(input_ids=torch.tensor([TOKENS]), output_hidden_states=True).hidden_states
    seen = ours(teacher, [TOKENS], list(range(teacher.depths + 1)))
    for depth in range(teacher.depths):
        torch.testing.assert_close(seen[depth], theirs[depth], rtol=1e-4, atol=1e-5)
    last = seen[teacher.depths]
    if teacher.norm is None:
        torch.testing.assert_close(last, theirs[-1], rtol=1e-4, atol=1e-5)
    else:
        assert not torch.allclose(last, theirs[-1], rtol=0.05)
        torch.testing.assert_close(teacher.norm(last), theirs[-1], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("family", FAMILIES)
def test_padding_changes_nothing(family: str, teacher_of: Callable[[str], Teacher]) -> None:
    teacher = teacher_of(family)
    depths = list(range(teacher.depths + 1))
    together = ours(teacher, [TOKENS, TOKENS[:5]], depths)
    alone = ours(teacher, [TOKENS[:5]], depths)
    for depth in depths:
        torch.testing.assert_close(together[depth][1, :5], alone[depth][0], rtol=1e-4, atol=1e-5)


def test_the_sliding_window_is_shorter_than_the_prompt(teacher_of: Callable[[str], Teacher]) -> None:
    teacher = teacher_of("gemma3")
    assert teacher.body.config.sliding_window < len(TOKENS)
    changed = [TOKENS[0], 100, *TOKENS[2:]]
    first = [ours(teacher, [t], [1])[1][0, -1] for t in (TOKENS, changed)]
    torch.testing.assert_close(first[0], first[1])


def test_the_pass_ends_at_the_deepest_depth_asked_for(llama: Teacher) -> None:
    ran: list[int] = []
    handles = [b.register_forward_pre_hook(lambda *_, i=i: ran.append(i)) for i, b in enumerate(llama.blocks)]
    try:
        assert list(ours(llama, [TOKENS], [0, 1])) == [0, 1]
        assert ran == [0]
        ran.clear()
        assert list(ours(llama, [TOKENS], [1], stop=False)) == [1]
        assert ran == [0, 1, 2]
    finally:
        for handle in handles:
            handle.remove()


def test_hooks_are_gone_afterwards_even_after_an_error(llama: Teacher) -> None:
    def fail(*_: object) -> None:
        raise RuntimeError("in the visit")

    # Transformers leaves hooks of its own on the blocks.
    before = [(dict(b._forward_hooks), dict(b._forward_pre_hooks)) for b in llama.blocks]
    with pytest.raises(RuntimeError, match="in the visit"), state_hooks(llama, [0, 2], fail, stop=True):
        run_body(llama, padded(TOKENS))
    assert [(dict(b._forward_hooks), dict(b._forward_pre_hooks)) for b in llama.blocks] == before


def test_blocks_that_return_a_tuple(llama: Teacher, monkeypatch: pytest.MonkeyPatch) -> None:
    expected = ours(llama, [TOKENS, TOKENS], [2])[2]
    forward = llama.blocks[1].forward
    monkeypatch.setattr(llama.blocks[1], "forward", lambda *args, **kwargs: (forward(*args, **kwargs),))
    torch.testing.assert_close(ours(llama, [TOKENS, TOKENS], [2])[2], expected)


@pytest.mark.parametrize("family", ["llama", "gpt2", "bert"])
def test_a_pass_can_enter_further_up(family: str, teacher_of: Callable[[str], Teacher]) -> None:
    teacher = teacher_of(family)
    whole = ours(teacher, [TOKENS], [1, 2, 3])
    with entering(teacher, 1, whole[2]):
        # Entered with the states of depth 2, block 1 makes what it would of them.
        other = ours(teacher, [TOKENS], [2])[2]
    with entering(teacher, 1, whole[1]):
        torch.testing.assert_close(ours(teacher, [TOKENS[::-1]], [2])[2], whole[2], rtol=1e-4, atol=1e-5)
    assert not torch.allclose(other, whole[2], rtol=0.05)


def test_no_model_can_swallow_the_stop() -> None:
    assert not issubclass(StopPass, Exception)
