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
from probekd.prompts import Prompt
from probekd.teacher.batching import Batch
from probekd.teacher.load import Teacher
from probekd.teacher.packing import branches_of
from probekd.teacher.passes import Budget, plan_work, run_work
from probekd.teacher.vocabulary import token_log_probs, vocabulary_logits

if TYPE_CHECKING:
    from torch import Tensor


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
class Wanted:
    """What is read of each row.

    Attributes:
        positions: Positions to keep.
        depths: Depths to keep, each in 0..L, ascending.
        max_options: k of the arrays.
        orders: m, the most option orders that a row has (``prompts.orders_read``).
        label_tokens: For each row the token ids of its labels; None = no ``label_token`` readout.
        likelihood: Score the ``scored`` span of each sequence.
    """

    positions: Sequence[Position]
    depths: Sequence[int]
    max_options: int
    orders: int = 1
    label_tokens: Sequence[Sequence[int]] | None = None
    likelihood: bool = False

    @property
    def outputs(self) -> bool:
        """Whether the last state is needed, for the output readouts."""
        return self.label_tokens is not None or self.likelihood

    def visited(self, teacher: Teacher) -> list[int]:
        """Depths that a pass must visit."""
        return sorted({*self.depths, *([teacher.depths] if self.outputs else [])})


class Collector:
    """Takes what is wanted from the states that a pass visits."""

    def __init__(self, teacher: Teacher, prompts: Sequence[Prompt], wanted: Wanted, progress: Progress | None = None):
        k, m, n = wanted.max_options, wanted.orders, len(prompts)
        slots: dict[Position, tuple[int, ...]] = {"answer": (), "option_end": (k,), "option_mean": (k,)}
        self._teacher, self._prompts, self._wanted = teacher, prompts, wanted
        self._progress = progress or Silent()
        self._place = {depth: i for i, depth in enumerate(wanted.depths)}
        # Of a depth that a streamed pass goes through without keeping it, nothing is wanted.
        self._last = max(wanted.visited(teacher), default=None)
        self._states: dict[Position, Tensor] = {
            p: torch.zeros((len(wanted.depths), n, m, *slots[p], teacher.width), dtype=teacher.dtype)
            for p in wanted.positions
        }
        self._label_logits = np.full((n, m, k), np.nan) if wanted.label_tokens is not None else None
        self._loglik = np.full((n, k), np.nan) if wanted.likelihood else None
        self._picks: tuple[Batch, _Picks] | None = None

    def visit(self, depth: int, batch: Batch, hidden: Tensor) -> None:
        """Take from the states (tokens of the batch, d) of one depth; see ``passes.BatchVisit``."""
        # Blocks may lie on several devices.
        if self._picks is None or self._picks[0] is not batch or self._picks[1].device != hidden.device:
            self._picks = batch, _Picks(batch, hidden.device)
        if depth in self._place:
            for position, states in self._states.items():
                self._picks[1].store(position, hidden, states[self._place[depth]])
        if depth == self._teacher.depths:
            if self._label_logits is not None:
                assert self._wanted.label_tokens is not None
                _read_label_logits(self._teacher, hidden, batch, self._wanted.label_tokens, self._label_logits)
            if self._loglik is not None:
                _read_likelihood(self._teacher, hidden, batch, self._loglik)
        if depth == self._last:
            self._progress.advance(sum(len(m.sequence.tokens) for m in batch.members))

    def reading(self) -> Reading:
        """What was taken.

        Raises:
            ModelError: a state is not finite; names row, depth and position.
        """
        _check_finite(self._states, self._wanted.depths, self._prompts)
        counts = [len(p.sequences) if p.layout == "listed" else 1 for p in self._prompts]
        options = [len(p.option_bytes) for p in self._prompts]
        logits = self._label_logits
        return Reading(
            states={p: over_orders(p, tensor, counts) for p, tensor in self._states.items()},
            label_logits=None if logits is None else logits_over_orders(logits, counts, options),
            option_loglik=self._loglik,
        )


def read_states(
    teacher: Teacher,
    prompts: Sequence[Prompt],
    wanted: Wanted,
    *,
    packed: bool = True,
    budget: Budget | None = None,
    progress: Progress | None = None,
) -> Reading:
    """Run a teacher that is in memory over rows of one layout, and keep only what is wanted.

    Args:
        teacher: The frozen model.
        prompts: The rows.
        wanted: What is kept.
        packed: Whether the model's attention can be packed (``check.packable``).
        budget: Tokens a batch; None = the config's.
        progress: Told the tokens as they are done; those of shared beginnings count for every row.

    Raises:
        ModelError: a state is not finite, or a row does not fit into memory.
    """
    collector = Collector(teacher, prompts, wanted, progress)
    plan = plan_work(teacher, [branches_of(i, p) for i, p in enumerate(prompts)], packed=packed)
    run_work(
        teacher, plan, wanted.visited(teacher), collector.visit, budget or Budget(teacher.config.batch_tokens or 1024)
    )
    return collector.reading()


class _Picks:
    """Index tensors of one batch: computed once, used at every depth."""

    def __init__(self, batch: Batch, device: torch.device) -> None:
        self.device = device
        members = list(enumerate(batch.members))
        answers = [(batch.at(b, m.sequence.answer), m.row, m.turn) for b, m in members if m.first == 0]
        spans = [
            (b, a, z, m.row, m.turn, m.first + j) for b, m in members for j, (a, z) in enumerate(m.sequence.options)
        ]
        tokens = [(batch.at(b, t), s) for s, (b, a, z, *_) in enumerate(spans) for t in range(a, z)]

        def numbers(rows: Sequence[Sequence[int]], width: int) -> Tensor:
            return torch.tensor(rows, dtype=torch.long).reshape(-1, width)

        at = numbers(answers, 3)
        self.answer_at, self.answer_rows = at[:, 0].to(device), at[:, 1:]
        self.end_at = torch.tensor([batch.at(b, z - 1) for b, _, z, *_ in spans], dtype=torch.long, device=device)
        self.token_at = numbers(tokens, 2).to(device)
        self.span_lengths = torch.tensor([z - a for _, a, z, *_ in spans], dtype=torch.float32, device=device)
        self.option_rows = numbers([s[3:] for s in spans], 3)

    def store(self, position: Position, hidden: Tensor, out: Tensor) -> None:
        """Copy this batch's states of one depth and position into ``out``: (n, m, d) or (n, m, k, d)."""
        if position == "answer":
            out[self.answer_rows[:, 0], self.answer_rows[:, 1]] = hidden[self.answer_at].to("cpu")
            return
        if position == "option_end":
            picked = hidden[self.end_at]
        else:
            sums = torch.zeros(len(self.span_lengths), hidden.shape[-1], device=hidden.device)
            sums.index_add_(0, self.token_at[:, 1], hidden[self.token_at[:, 0]].float())
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


def _read_label_logits(
    teacher: Teacher, hidden: Tensor, batch: Batch, label_tokens: Sequence[Sequence[int]], out: np.ndarray
) -> None:
    at = torch.tensor([batch.at(b, m.sequence.answer) for b, m in enumerate(batch.members)], device=hidden.device)
    distinct = sorted({t for m in batch.members for t in label_tokens[m.row]})
    column = {token: i for i, token in enumerate(distinct)}
    logits = vocabulary_logits(teacher, hidden[at], torch.tensor(distinct, device=hidden.device)).cpu().numpy()
    for values, member in zip(logits, batch.members, strict=True):
        tokens = label_tokens[member.row]
        # Labels that begin with the same token share its probability evenly: the readout cannot tell them apart.
        shares = np.array([tokens.count(t) for t in tokens])
        # The label at a place speaks for the option that stands there.
        out[member.row, member.turn, list(member.sequence.order)] = values[[column[t] for t in tokens]] - np.log(shares)


def _read_likelihood(teacher: Teacher, hidden: Tensor, batch: Batch, out: np.ndarray) -> None:
    # The token at t is predicted by the state at t - 1; options that continue one trunk share the first of these.
    said = [
        (batch.at(i, t - 1), i, m.sequence.tokens[t])
        for i, m in enumerate(batch.members)
        for t in range(*m.sequence.scored)
    ]
    said.sort()
    flat = torch.tensor(said, dtype=torch.long, device=hidden.device)
    at, which = flat[:, 0].unique_consecutive(return_inverse=True)
    sums = torch.zeros(len(batch.members), dtype=torch.float64, device=hidden.device)
    sums.index_add_(0, flat[:, 1], token_log_probs(teacher, hidden[at], which, flat[:, 2]).double())
    for value, member in zip(sums.tolist(), batch.members, strict=True):
        out[member.row, member.first] = value


def _check_finite(states: dict[Position, Tensor], depths: Sequence[int], prompts: Sequence[Prompt]) -> None:
    for position, tensor in states.items():
        # A sum is finite only if all its terms are, and makes no second tensor; one that overflows says nothing.
        if not bool(tensor.sum().isfinite()) and not bool(tensor.isfinite().all()):
            bad = (~torch.isfinite(tensor.flatten(2))).any(dim=2).nonzero()[0]
            raise not_finite(depths[int(bad[0])], f"position {position}, row {prompts[int(bad[1])].id!r}")


def not_finite(depth: int, where: str) -> ModelError:
    """The error of a state that overflowed."""
    return ModelError(
        f"the teacher's state at depth {depth}, {where} is not finite (NaN or infinity); load it in float32, and check its weights"
    )
