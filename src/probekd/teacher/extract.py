"""The teacher pass: prompts in, states at chosen positions and depths out, and the output readouts' numbers with them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch

from probekd.config import Position
from probekd.errors import ModelError
from probekd.progress import Progress, Silent
from probekd.prompts import Prompt, TokenSequence
from probekd.teacher.batching import token_batches
from probekd.teacher.hooks import run_body, state_hooks
from probekd.teacher.load import Teacher

if TYPE_CHECKING:
    from torch import Tensor

# Vocabulary logits of this many numbers at a time: 128 MiB in float32.
_LOGITS_AT_ONCE = 2**25
_SELF_CHECK_TOLERANCE = {"float32": 1e-3, "bfloat16": 5e-2}


@dataclass(frozen=True, kw_only=True)
class Reading:
    """What one pass over n prompts gives.

    Rows read in m > 1 option orders: everything is un-permuted, to the row's own options, before it is averaged.
    Option states are averaged because that is exact for a linear reader: the mean of its logits is its logit of the
    mean state. An ``answer`` state is about the letters as shown, so a reader needs its order, and each is kept.

    Attributes:
        states: By position: ``answer`` (depths, n, d), with m > 1 (depths, n, m, d), where a row with c < m orders
            repeats them: the j-th is of order j mod c; ``option_end`` and ``option_mean`` (depths, n, k, d), the mean
            over the row's distinct orders, zero beyond its own options.
        label_logits: (n, k) logits of each option's label token at ``answer``, with m > 1 the mean over the distinct
            orders of the log-probabilities among the row's labels; NaN beyond a row's options; None if not asked for.
        option_loglik: (n, k) summed log-likelihood of each option's text in nats, NaN beyond; None if not ``branched``.
    """

    states: dict[Position, Tensor]
    label_logits: np.ndarray | None
    option_loglik: np.ndarray | None


@dataclass(frozen=True, kw_only=True)
class _Branch:
    """One sequence and where its options go: row of the reading, number of its order, index of its first option."""

    row: int
    turn: int
    first: int
    sequence: TokenSequence


def read_states(
    teacher: Teacher,
    prompts: Sequence[Prompt],
    *,
    positions: Sequence[Position],
    depths: Sequence[int],
    max_options: int,
    orders: int = 1,
    label_tokens: Sequence[Sequence[int]] | None = None,
    likelihood: bool = False,
    progress: Progress | None = None,
) -> Reading:
    """Run the teacher over prompts in batches of similar length and keep only what was asked for.

    Args:
        teacher: The frozen model.
        prompts: Rows of one layout.
        positions: Positions to keep.
        depths: Depths to keep, each in 0..L.
        max_options: k of the returned arrays.
        orders: m, the most option orders that a row has (``prompts.orders_read``).
        label_tokens: For each row the token ids of its labels; None = no ``label_token`` readout.
        likelihood: Score the ``scored`` span of each sequence.
        progress: Told the tokens as they are done.

    Raises:
        ModelError: a state is not finite; names row, depth and position.
    """
    progress = progress or Silent()
    device, dtype = teacher.device, next(teacher.body.parameters()).dtype
    slots: dict[Position, tuple[int, ...]] = {"answer": (), "option_end": (max_options,), "option_mean": (max_options,)}
    states: dict[Position, Tensor] = {
        p: torch.zeros((len(depths), len(prompts), orders, *slots[p], teacher.width), dtype=dtype) for p in positions
    }
    label_logits = np.full((len(prompts), orders, max_options), np.nan) if label_tokens is not None else None
    loglik = np.full((len(prompts), max_options), np.nan) if likelihood else None
    outputs = label_tokens is not None or likelihood
    wanted = sorted({*depths, *([teacher.depths] if outputs else [])})
    place = {depth: i for i, depth in enumerate(depths)}
    branches = [branch for row, prompt in enumerate(prompts) for branch in _branches(row, prompt)]

    for batch in token_batches([len(b.sequence.tokens) for b in branches], teacher.config.batch_tokens):
        members = [branches[i] for i in batch]
        picks = _Picks(members, device)

        def visit(depth: int, hidden: Tensor, picks: _Picks = picks, members: list[_Branch] = members) -> None:
            if depth in place:
                for position in positions:
                    picks.store(position, hidden, states[position][place[depth]])
            if outputs and depth == teacher.depths:
                if label_logits is not None:
                    assert label_tokens is not None
                    _read_label_logits(teacher, hidden, members, label_tokens, label_logits)
                if loglik is not None:
                    _read_likelihood(teacher, hidden, members, loglik)

        with torch.inference_mode(), state_hooks(teacher, wanted, visit, stop=True):
            run_body(teacher, [m.sequence.tokens for m in members])
        progress.advance(sum(len(m.sequence.tokens) for m in members))

    _check_finite(states, depths, prompts)
    counts = [len(p.sequences) if p.layout == "listed" else 1 for p in prompts]
    options = [len(p.option_bytes) for p in prompts]
    return Reading(
        states={p: over_orders(p, tensor, counts) for p, tensor in states.items()},
        label_logits=None if label_logits is None else logits_over_orders(label_logits, counts, options),
        option_loglik=loglik,
    )


def _branches(row: int, prompt: Prompt) -> list[_Branch]:
    """A ``listed`` prompt has one sequence for each order, a ``branched`` one for each option."""
    if prompt.layout == "listed":
        return [_Branch(row=row, turn=turn, first=0, sequence=s) for turn, s in enumerate(prompt.sequences)]
    return [_Branch(row=row, turn=0, first=first, sequence=s) for first, s in enumerate(prompt.sequences)]


class _Picks:
    """Index tensors of one batch: computed once, used at every depth."""

    def __init__(self, members: Sequence[_Branch], device: torch.device) -> None:
        answers = [(b, m.sequence.answer, m.row, m.turn) for b, m in enumerate(members) if m.first == 0]
        spans = [
            (b, a, z, m.row, m.turn, m.first + j)
            for b, m in enumerate(members)
            for j, (a, z) in enumerate(m.sequence.options)
        ]
        tokens = [(b, t, s) for s, (b, a, z, *_) in enumerate(spans) for t in range(a, z)]
        self.answer_at = torch.tensor([a[:2] for a in answers], dtype=torch.long, device=device).reshape(-1, 2)
        self.answer_rows = torch.tensor([a[2:] for a in answers], dtype=torch.long).reshape(-1, 2)
        self.end_at = torch.tensor([(b, z - 1) for b, _, z, *_ in spans], dtype=torch.long, device=device).reshape(
            -1, 2
        )
        self.token_at = torch.tensor(tokens, dtype=torch.long, device=device).reshape(-1, 3)
        self.span_lengths = torch.tensor([z - a for _, a, z, *_ in spans], dtype=torch.float32, device=device)
        self.option_rows = torch.tensor([s[3:] for s in spans], dtype=torch.long).reshape(-1, 3)

    def store(self, position: Position, hidden: Tensor, out: Tensor) -> None:
        """Copy this batch's states of one depth and position into ``out``: (n, m, d) or (n, m, k, d)."""
        if position == "answer":
            out[self.answer_rows[:, 0], self.answer_rows[:, 1]] = hidden[self.answer_at[:, 0], self.answer_at[:, 1]].to(
                "cpu"
            )
            return
        if position == "option_end":
            picked = hidden[self.end_at[:, 0], self.end_at[:, 1]]
        else:
            sums = torch.zeros(len(self.span_lengths), hidden.shape[-1], device=hidden.device)
            sums.index_add_(0, self.token_at[:, 2], hidden[self.token_at[:, 0], self.token_at[:, 1]].float())
            picked = (sums / self.span_lengths[:, None]).to(hidden.dtype)
        out[self.option_rows[:, 0], self.option_rows[:, 1], self.option_rows[:, 2]] = picked.to("cpu")


def over_orders(position: Position, states: Tensor, counts: Sequence[int]) -> Tensor:
    """Bring states of m orders to what is kept of them; with m = 1 the states as they are.

    Args:
        position: ``answer``: every order is kept; else their mean is.
        states: (depths, n, m, d) for ``answer``, else (depths, n, m, k, d); what lies beyond a row's orders is zero.
        counts: (n,) orders of each row, at most m.

    Returns:
        (depths, n, m, d) for ``answer`` with a row's orders repeated in turn to fill m, else (depths, n, k, d).
    """
    m = states.shape[2]
    if m == 1:
        return states.squeeze(2)
    orders = torch.tensor(counts)
    if position == "answer":
        turns = torch.arange(m) % orders[:, None]
        return states[:, torch.arange(len(counts))[:, None], turns]
    # One depth at a time: the sum is taken in float32, which of all depths of bfloat16 states would be twice their size.
    return torch.stack([(s.sum(1, dtype=torch.float32) / orders[:, None, None]).to(s.dtype) for s in states])


def logits_over_orders(logits: np.ndarray, counts: Sequence[int], options: Sequence[int]) -> np.ndarray:
    """Mean over orders of the log-probabilities; with m = 1 the logits as they are.

    Logits of different prompts differ by more than their options, so each order is normalised before the mean.

    Args:
        logits: (n, m, k), un-permuted; NaN beyond a row's orders and options.
        counts: (n,) orders of each row, at most m.
        options: (n,) options of each row, at most k.

    Returns:
        (n, k), NaN beyond a row's options.
    """
    if logits.shape[1] == 1:
        return logits[:, 0]
    out = np.full((len(logits), logits.shape[2]), np.nan)
    for row, values, c, k in zip(out, logits, counts, options, strict=True):
        row[:k] = torch.from_numpy(values[:c, :k]).log_softmax(1).mean(0).numpy()
    return out


def _vocabulary_logits(teacher: Teacher, hidden: Tensor, tokens: Tensor | None = None) -> Tensor:
    """Logits in float32 from pre-norm states (m, d): all of the vocabulary, or only ``tokens``."""
    assert teacher.head_weight is not None
    normed = teacher.norm(hidden) if teacher.norm is not None else hidden
    weight = teacher.head_weight if tokens is None else teacher.head_weight[tokens]
    logits = (normed.to(weight.dtype) @ weight.T).float()
    if teacher.head_bias is not None:
        logits = logits + (teacher.head_bias if tokens is None else teacher.head_bias[tokens]).float()
    if teacher.softcap:
        logits = torch.tanh(logits / teacher.softcap) * teacher.softcap
    return logits


def _read_label_logits(
    teacher: Teacher, hidden: Tensor, members: Sequence[_Branch], label_tokens: Sequence[Sequence[int]], out: np.ndarray
) -> None:
    rows = torch.stack([hidden[b, m.sequence.answer] for b, m in enumerate(members)])
    distinct = sorted({t for m in members for t in label_tokens[m.row]})
    column = {token: i for i, token in enumerate(distinct)}
    logits = _vocabulary_logits(teacher, rows, torch.tensor(distinct, device=hidden.device)).cpu().numpy()
    for values, member in zip(logits, members, strict=True):
        tokens = label_tokens[member.row]
        # Labels that begin with the same token share its probability evenly: the readout cannot tell them apart.
        shares = np.array([tokens.count(t) for t in tokens])
        # The label at a place speaks for the option that stands there.
        out[member.row, member.turn, list(member.sequence.order)] = values[[column[t] for t in tokens]] - np.log(shares)


def _read_likelihood(teacher: Teacher, hidden: Tensor, members: Sequence[_Branch], out: np.ndarray) -> None:
    # The token at t is predicted by the state at t - 1.
    flat = [(i, t - 1, m.sequence.tokens[t]) for i, m in enumerate(members) for t in range(*m.sequence.scored)]
    at = torch.tensor(flat, dtype=torch.long, device=hidden.device)
    sums = torch.zeros(len(members), dtype=torch.float64, device=hidden.device)
    assert teacher.head_weight is not None
    for part in at.split(max(1, _LOGITS_AT_ONCE // teacher.head_weight.shape[0])):
        logits = _vocabulary_logits(teacher, hidden[part[:, 0], part[:, 1]])
        said = logits.gather(1, part[:, 2:]).squeeze(1) - logits.logsumexp(dim=1)
        sums.index_add_(0, part[:, 0], said.double())
    for value, member in zip(sums.tolist(), members, strict=True):
        out[member.row, member.first] = value


def _check_finite(states: dict[Position, Tensor], depths: Sequence[int], prompts: Sequence[Prompt]) -> None:
    for position, tensor in states.items():
        if not bool(torch.isfinite(tensor).all()):
            bad = (~torch.isfinite(tensor.flatten(2))).any(dim=2).nonzero()[0]
            raise _not_finite(depths[int(bad[0])], f"position {position}, row {prompts[int(bad[1])].id!r}")


def _not_finite(depth: int, where: str) -> ModelError:
    return ModelError(
        f"the teacher's state at depth {depth}, {where} is not finite (NaN or infinity); load it in float32, and check its weights"
    )


def check_pass(teacher: Teacher, prompt: Prompt, label_tokens: Sequence[int] | None) -> None:
    """Compare our pass on one row with Transformers' own ``output_hidden_states`` and logits, before trusting it.

    One short forward pass buys certainty about the block stack, the depth convention, the norm and the head of an
    architecture that no test has met.

    Raises:
        ModelError: they differ by more than rounding, or a state is not finite; names what and where.
    """
    sequence = prompt.sequences[0]
    seen: dict[int, Tensor] = {}
    depths = range(teacher.depths + 1)
    with torch.inference_mode():
        ids = torch.tensor([sequence.tokens], device=teacher.device)
        theirs = teacher.model(input_ids=ids, output_hidden_states=True)
        with state_hooks(teacher, depths, lambda depth, hidden: seen.update({depth: hidden.clone()}), stop=True):
            run_body(teacher, [sequence.tokens])
        broken = [depth for depth, hidden in seen.items() if not bool(torch.isfinite(hidden).all())]
        if broken:
            raise _not_finite(broken[0], f"row {prompt.id!r}")
        last = seen[teacher.depths]
        if teacher.norm is not None:
            seen[teacher.depths] = teacher.norm(last)
        pairs = [(f"state at depth {k}", seen[k], theirs.hidden_states[k]) for k in depths]
        if label_tokens is not None:
            labels = torch.tensor(label_tokens, device=teacher.device)
            ours = _vocabulary_logits(teacher, last[:, sequence.answer], labels)
            pairs.append(("logits of the label tokens", ours, theirs.logits[:, sequence.answer][:, labels]))
    for what, ours, reference in pairs:
        _expect_equal(what, ours, reference, teacher)


def _expect_equal(what: str, ours: Tensor, theirs: Tensor, teacher: Teacher) -> None:
    tolerance = _SELF_CHECK_TOLERANCE[teacher.config.dtype]
    error = float((ours.float() - theirs.float()).abs().max() / theirs.float().abs().max().clamp_min(1e-30))
    if not error <= tolerance:
        raise ModelError(
            f"{teacher.name}: our {what} differs from Transformers' own by {error:.1e} (relative; at most {tolerance:.0e} is rounding); "
            f"the architecture {type(teacher.body).__name__} is not supported"
        )
