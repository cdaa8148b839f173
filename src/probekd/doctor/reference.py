"""The reference: plain Transformers, one sequence at a time, without padding, in float32; none of our pass is in it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import cycle, islice
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from probekd.config import Dtype, Position, TeacherConfig
from probekd.doctor.sample import Sheet
from probekd.errors import ModelError, ProbeKDError
from probekd.prompts import Prompt, TokenSequence
from probekd.teacher.blocks import find_stack
from probekd.teacher.extract import Reading
from probekd.teacher.gguf import gguf_source
from probekd.teacher.load import quiet_transformers


@dataclass(frozen=True, kw_only=True)
class Truth:
    """What Transformers gives for a sheet.

    Attributes:
        reading: In the form of our own.
        normed: By position, the last states after the final norm, as ``output_hidden_states`` has them.
        largest: The largest number of any token's state and of all that the model's matrices put out, and where it was.
    """

    reading: Reading
    normed: dict[Position, Tensor]
    largest: tuple[float, str]

    @property
    def finite(self) -> bool:
        """Whether every state is."""
        return all(bool(torch.isfinite(s).all()) for s in self.reading.states.values())


@dataclass(frozen=True, kw_only=True)
class _One:
    """One sequence: states (depths, tokens, d), normed (1, tokens, d), logits (tokens, vocabulary) or None; see ``Truth``."""

    states: Tensor
    normed: Tensor
    logits: Tensor | None
    largest: tuple[float, str]


def read_reference(
    config: TeacherConfig, source: Path, sheets: Sequence[Sheet], *, encoder: bool, dtype: Dtype = "float32"
) -> tuple[Truth, ...]:
    """Load a model as anyone would, and read the sheets with it.

    Args:
        config: For the device, and whether the checkpoint's own code may run.
        source: Directory of the model, or a GGUF file.
        sheets: The rows.
        encoder: Whether it reads both ways.
        dtype: What it computes in.

    Raises:
        ModelError: Transformers cannot load or run it.
    """
    from transformers import AutoModel, AutoModelForCausalLM

    family: Any = AutoModel if encoder else AutoModelForCausalLM
    device = config.device if config.device != "auto" else ("cuda" if torch.cuda.is_available() else "cpu")
    try:
        with quiet_transformers():
            model = family.from_pretrained(
                **gguf_source(source), dtype=getattr(torch, dtype), trust_remote_code=config.trust_remote_code
            )
            model.to(device).eval()
            return tuple(_read(model, sheet, encoder=encoder) for sheet in sheets)
    except ProbeKDError:
        raise
    except Exception as error:
        # Whatever a model's code raises: without a reference there is nothing to compare with.
        said = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise ModelError(f"{source}: plain Transformers cannot load or run it: {said}") from None


def _read(model: Any, sheet: Sheet, *, encoder: bool) -> Truth:
    body = model if encoder else model.base_model
    last = find_stack(body, int(model.config.get_text_config().num_hidden_layers), type(model).__name__)[-1]
    rows: list[dict[Position, Tensor]] = []
    normed: list[dict[Position, Tensor]] = []
    largest = (0.0, "")
    label_logits = np.full((len(sheet.rows), sheet.max_options), np.nan)
    loglik = label_logits.copy()
    for number, prompt in enumerate(sheet.prompts):
        each = [_run(model, last, s) for s in prompt.sequences]
        largest = max(largest, *(one.largest for one in each))
        rows.append(_picked(sheet, prompt, [one.states for one in each]))
        normed.append(_picked(sheet, prompt, [one.normed for one in each]))
        if sheet.labels is not None:
            label_logits[number, : len(prompt.option_bytes)] = _label_logits(sheet.labels[number], prompt, each, sheet)
        if sheet.layout == "branched" and not encoder:
            loglik[number, : len(each)] = [_loglik(s, one) for s, one in zip(prompt.sequences, each, strict=True)]
    return Truth(
        reading=Reading(
            states={p: torch.stack([r[p] for r in rows], dim=1) for p in sheet.positions},
            label_logits=label_logits if sheet.labels is not None else None,
            option_loglik=loglik if sheet.layout == "branched" and not encoder else None,
        ),
        normed={p: torch.stack([r[p] for r in normed], dim=1)[0] for p in sheet.positions},
        largest=largest,
    )


def _run(model: Any, last: Any, sequence: TokenSequence) -> _One:
    ids = torch.tensor([sequence.tokens], device=model.device)
    with torch.inference_mode(), _output_of(last) as leaving, _peaks_of(model) as peaks:
        out = model(input_ids=ids, output_hidden_states=True)
    *below, normed = (h[0].float().cpu() for h in out.hidden_states)
    logits = getattr(out, "logits", None)
    # Transformers' own list ends after the final norm; we keep what enters it.
    states = torch.stack([*below, leaving[-1][0].float().cpu()])
    peaks += [(float(s.abs().max()), f"in a state at depth {depth}") for depth, s in enumerate(states)]
    return _One(
        states=states,
        normed=normed[None],
        logits=None if logits is None else logits[0].float().cpu(),
        largest=max(peaks),
    )


@contextmanager
def _peaks_of(model: Any) -> Iterator[list[tuple[float, str]]]:
    """The largest number that each of a model's matrices puts out, at whatever token, and its name."""
    peaks: list[tuple[float, str]] = []

    def keep(name: str) -> Any:
        def hook(_: Any, __: Any, output: Any) -> None:
            peaks.append((float(output.detach().abs().max()), f"out of {name}"))

        return hook

    matrices = [(n, m) for n, m in model.named_modules() if getattr(getattr(m, "weight", None), "ndim", 0) == 2]
    handles = [module.register_forward_hook(keep(name)) for name, module in matrices]
    try:
        yield peaks
    finally:
        for handle in handles:
            handle.remove()


@contextmanager
def _output_of(module: Any) -> Iterator[list[Tensor]]:
    seen: list[Tensor] = []

    def keep(_: Any, __: Any, output: Any) -> None:
        seen.append((output[0] if isinstance(output, tuple) else output).clone())

    handle = module.register_forward_hook(keep)
    try:
        yield seen
    finally:
        handle.remove()


def _picked(sheet: Sheet, prompt: Prompt, sequences: Sequence[Tensor]) -> dict[Position, Tensor]:
    """What ``Reading`` keeps of one row, from the states (depths, tokens, d) of each of its sequences."""
    depths, _, width = sequences[0].shape
    found: dict[Position, Tensor] = {}
    for position in sheet.positions:
        if position == "answer":
            orders = [s[:, one.answer] for s, one in zip(sequences, prompt.sequences, strict=True)]
            found[position] = (
                orders[0] if sheet.orders == 1 else torch.stack(list(islice(cycle(orders), sheet.orders)), dim=1)
            )
            continue
        options = torch.zeros(depths, sheet.max_options, width)
        turns = len(prompt.sequences) if prompt.layout == "listed" else 1
        for number, (states, one) in enumerate(zip(sequences, prompt.sequences, strict=True)):
            for place, (start, stop) in enumerate(one.options, 0 if prompt.layout == "listed" else number):
                taken = states[:, start:stop].mean(1) if position == "option_mean" else states[:, stop - 1]
                options[:, place] += taken / turns
        found[position] = options
    return found


def _label_logits(labels: Sequence[int], prompt: Prompt, each: Sequence[_One], sheet: Sheet) -> np.ndarray:
    """Logits of the options' labels, un-permuted; of several orders the mean of their log-probabilities."""
    turns = []
    for sequence, one in zip(prompt.sequences, each, strict=True):
        assert one.logits is not None
        values = one.logits[sequence.answer, list(labels)].double()
        values -= torch.tensor([float(list(labels).count(t)) for t in labels]).log()
        own = torch.empty_like(values)
        own[list(sequence.order)] = values
        turns.append(own if sheet.orders == 1 else own.log_softmax(0))
    return np.asarray(torch.stack(turns).mean(0))


def _loglik(sequence: TokenSequence, one: _One) -> float:
    assert one.logits is not None
    start, stop = sequence.scored
    said = torch.tensor(sequence.tokens[start:stop])
    return float(one.logits[start - 1 : stop - 1].double().log_softmax(1).gather(1, said[:, None]).sum())
