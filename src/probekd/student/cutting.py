"""Cut a student out of its teacher: the first blocks, with the probe that reads them best as its head."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from probekd.config import Layout, Position, ProbeConfig, StudentConfig
from probekd.errors import ConfigError, ModelError
from probekd.files import replacing
from probekd.methods.hidden import positions_tried
from probekd.probes.fit import fit_probes
from probekd.probes.linear import LinearMap, linear_map
from probekd.probes.probe import Probe
from probekd.probes.reader import Reader
from probekd.prompts import LETTERS, PromptEncoder, orders_read
from probekd.states import States
from probekd.student.kinds.cut import Cut, Reading, put_head, without_norm
from probekd.student.kinds.decoder import shown
from probekd.student.load import first_blocks_of, has_classifier, load_config, load_tokenizer, usable_length
from probekd.tasks.base import Example, Task
from probekd.teacher.architecture import find_norm
from probekd.teacher.check import TOLERANCE

_CHECKED_ROWS = 4
# As Transformers starts a head.
_FRESH_STD = 0.02


def cut_student(
    model: str | Path,
    probe: Probe,
    states: States,
    task: Task,
    directory: Path,
    *,
    config: StudentConfig,
    probe_config: ProbeConfig | None = None,
    head: Literal["probe", "fresh"] = "probe",
    seed: int = 0,
) -> Path:
    """Write the checkpoint that a student of kind ``cut`` starts from, and that is one already.

    The student reads one state of one depth, so it gets the probe's best reader that does (``single_reader``). Where
    that is a text's last state and Transformers has a sequence classifier of the architecture, the directory is one; it
    reads states after the final norm, so the reader is fitted to these anew. Else the directory is the body's, with
    ``head.safetensors`` beside it, and its logits are those of the reader.

    Args:
        model: The teacher: a local Transformers directory or a Hub id.
        probe: What the labelled rows chose.
        states: The labelled rows' states that the probe was fitted to.
        task: The rows.
        directory: Where it goes; what is there is replaced.
        config: ``depth``, ``max_length``, ``revision`` and ``trust_remote_code``.
        probe_config: How the probe was fitted; None = the defaults.
        head: ``fresh``: random weights on normed states, for training on labels alone.
        seed: Decides the folds, as in ``fit_probes``; draws a fresh head.

    Raises:
        ConfigError: no reader that such a student could have.
        ModelError: a teacher that is no decoder, or whose blocks alone do not give the probe's states.
    """
    probe_config = probe_config or ProbeConfig()
    reader = single_reader(probe, task, config.depth)
    classifier = reads_last(reader) and has_classifier(model, config)
    reading = Reading(
        layout=reader.layout,
        position=reader.position,
        normed=classifier or head == "fresh",
        classifier=classifier,
    )
    labelled = [e for e in task.rows("train") if e.answer is not None]
    outputs = 1 if reading.shared else max(len(e.options) for e in labelled)
    network = first_blocks_of(model, reader.depth, outputs if classifier else None, config)
    norm = None if reading.normed else without_norm(network)
    view = View.of(states, reader, find_norm(network.base_model) if reading.normed else None)
    if head == "fresh":
        tensors = _fresh(network.config.get_text_config().hidden_size, outputs, seed)
    else:
        alone = refitted(view, reader, task, probe_config, seed, probe.flattery)
        fitted = _head(alone, view, reader, biased=not classifier)
        tensors = _tensors(fitted, biased=not classifier and not reading.shared)
    put_head(network, tensors)
    tokenizer = load_tokenizer(model, config)
    _name_outputs(network.config, ("score",) if reading.shared else task.labels or LETTERS[:outputs], tokenizer)
    student = Cut(
        network=network,
        tokenizer=tokenizer,
        max_length=usable_length(tokenizer, network.config, config.max_length),
        prompts=PromptEncoder(tokenizer, shown(task)),
        reading=reading,
        norm=norm,
    )
    if head == "probe":
        _check(student, view, reader, labelled[:_CHECKED_ROWS], model)
    with replacing(directory) as unfinished:
        student.save(unfinished)
    return directory


def single_reader(probe: Probe, task: Task, depth: int | None) -> Reader:
    """The probe's best reader of one depth that is linear and reads a row in one order.

    That is the probe's own best where it is such a reader, else the candidate with the lowest out-of-fold log-loss.

    Args:
        probe: What the labelled rows chose, and its candidates.
        task: Kind and prompt.
        depth: The only depth that will do; None = any but the embeddings.

    Raises:
        ConfigError: there is none.
    """

    def will_do(reader: Reader) -> bool:
        right = reader.depth >= 1 if depth is None else reader.depth == depth
        linear = reader.window == 1 and reader.family != "mlp"
        return right and linear and orders_read(task.kind, reader.layout, task.prompt) == 1

    # The first is the best by itself; those after it are what it is stacked with.
    if will_do(probe.readers[0]):
        return probe.readers[0]
    found = [c for c in probe.candidates if will_do(c.reader)]
    if not found:
        raise _no_reader(depth)
    return min(found, key=lambda c: c.nll).reader


def check_reader(task: Task, probe: ProbeConfig, config: StudentConfig) -> None:
    """Raise what ``single_reader`` raises, before there is a probe.

    Args:
        task: Kind and prompt.
        probe: What will be tried.
        config: The student's; ``model`` is the teacher.
    """
    blocks = load_config(config.model, config).get_text_config().num_hidden_layers
    depths = set(range(1, blocks + 1)) & set(range(1, blocks + 1) if probe.depths is None else probe.depths)
    linear = probe.model_copy(update={"families": tuple(f for f in probe.families if f != "mlp")})
    once = [layout for layout, _ in positions_tried(task, linear) if orders_read(task.kind, layout, task.prompt) == 1]
    if not once or not (depths if config.depth is None else depths & {config.depth}):
        raise _no_reader(config.depth)


def _no_reader(depth: int | None) -> ConfigError:
    where = "at any depth" if depth is None else f"at depth {depth} (student.depth)"
    return ConfigError(
        f"student.kind: cut needs a probe that is linear, reads one state and sees a row in one order {where}, and "
        "none was tried; see probe.families, probe.positions, probe.depths and prompt.permutations"
    )


def reads_last(reader: Reader) -> bool:
    """Whether the reader's state is that of a text's last token."""
    return Reading(layout=reader.layout, position=reader.position, normed=True, classifier=True).last


@dataclass(frozen=True)
class View(States):
    """The states of one layout, after a norm if there is one.

    Attributes:
        norm: The final norm, or None.
    """

    norm: Any = None

    @classmethod
    def of(cls, states: States, reader: Reader, norm: Any) -> View:
        """The states that a reader reads."""
        return cls(tuple(s for s in states.stores if s.layout == reader.layout), norm)

    def read(self, layout: Layout, position: Position, depth: int, ids: Sequence[str]) -> np.ndarray:
        """See ``States``."""
        found = super().read(layout, position, depth, ids)
        if self.norm is None:
            return found
        with torch.inference_mode():
            return np.asarray(self.norm(torch.from_numpy(found)).numpy())


def refitted(view: States, reader: Reader, task: Task, config: ProbeConfig, seed: int, flattery: float) -> Probe:
    """A probe that is this reader alone, fitted to the labelled rows and calibrated, softened as what chose it was."""
    alone: dict[str, Any] = {
        "positions": (reader.position,),
        "depths": (reader.depth,),
        "families": (reader.family,),
        "l2": (reader.l2,) if reader.l2 else config.l2,
        "windows": (),
        "stack": False,
    }
    return replace(fit_probes(view, task, config=config.model_copy(update=alone), seed=seed), flattery=flattery)


def _head(probe: Probe, view: View, reader: Reader, *, biased: bool) -> LinearMap:
    found = linear_map(probe)
    if biased or reader.position != "answer":
        return found
    return found.without_bias(view.read(reader.layout, reader.position, reader.depth, probe.ids).astype(np.float64))


def _tensors(fitted: LinearMap, *, biased: bool) -> dict[str, Tensor]:
    """As ``put_head`` takes them; what shared options have in common moves no softmax, so it is left out."""
    weight = {"weight": torch.from_numpy(fitted.weight.T.astype(np.float32)).contiguous()}
    return weight | ({"bias": torch.from_numpy(fitted.bias.astype(np.float32))} if biased else {})


def _fresh(d: int, outputs: int, seed: int) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return {"weight": _FRESH_STD * torch.randn(outputs, d, generator=generator)}


def _name_outputs(architecture: Any, names: Sequence[str], tokenizer: Any) -> None:
    """Tell a Transformers config what the head's scores are of, and what pads."""
    architecture.id2label = dict(enumerate(names))
    architecture.label2id = {name: number for number, name in enumerate(names)}
    if architecture.pad_token_id is None:
        architecture.pad_token_id = tokenizer.pad_token_id


def _check(student: Cut, view: View, reader: Reader, rows: Sequence[Example], model: str | Path) -> None:
    """Compare the student's logits on a few rows with its head on the states that the teacher's pass left.

    Raises:
        ModelError: they differ by more than rounding.
    """
    with torch.inference_mode():
        said = student.logits(student.network.eval(), student.collate(student.encode(rows)))
        states = view.read(reader.layout, reader.position, reader.depth, [e.id for e in rows])
        expected = student.network.score(torch.from_numpy(states))
    expected = expected[..., 0] if reader.position != "answer" else expected
    k = min(said.shape[1], expected.shape[1])
    there = said[:, :k].isfinite()
    apart = float((said[:, :k] - expected[:, :k])[there].abs().max())
    tolerance = TOLERANCE[view.teacher["dtype"]] * max(1.0, float(expected[:, :k][there].abs().max()))
    if not apart <= tolerance:
        raise ModelError(
            f"{model}: its first {reader.depth} blocks by themselves give logits that differ by {apart:.1e} from the "
            "probe's, so it cannot be cut; take a student of another kind"
        )
