"""What of a student goes into an ONNX file, and how it is written."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers.modeling_outputs import SequenceClassifierOutput

from probekd.config import KindName
from probekd.errors import ModelError
from probekd.student.inputs import Encoded
from probekd.student.kinds import StudentKind
from probekd.student.onnx import need
from probekd.student.onnx.quiet import quietly

# Kinds whose network maps the tokenizer's tensors, (b, tokens) or (b, options, tokens), to logits; and how that network
# gives them to the kind. A kind that needs more than these tensors of a row needs a graph of its own.
ANSWERS: dict[KindName, Callable[[Tensor], Any]] = {
    "head": lambda logits: SequenceClassifierOutput(logits=logits),
    "static": lambda logits: logits,
}
AXES = {2: ("batch", "tokens"), 3: ("batch", "options", "tokens")}
# A protocol buffer holds less than 2 GiB.
LARGEST = 2**31 - 2**20


class _Graph(torch.nn.Module):
    """A network's logits as a function of its inputs, in the order of their names."""

    def __init__(self, network: Any, inputs: Sequence[str]) -> None:
        super().__init__()
        self.network, self.inputs = network, tuple(inputs)

    def forward(self, *tensors: Tensor) -> Tensor:
        found = self.network(**dict(zip(self.inputs, tensors, strict=True)))
        logits: Tensor = found if isinstance(found, Tensor) else found.logits
        return logits


def graph_inputs(batch: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Of a collated batch what the network takes; which options are there, the kind alone asks."""
    return {name: tensor for name, tensor in batch.items() if name != "present"}


def write_graph(kind: StudentKind, rows: Sequence[Encoded], path: Path) -> None:
    """Write a student as one ONNX file, for batches, option counts and lengths of any size.

    Its inputs are the tokenizer's, its output ``logits`` is the network's own.

    Args:
        kind: The student, on the CPU, in evaluation mode.
        rows: At least two rows to trace it with.
        path: The file.

    Raises:
        ModelError: a package is missing, the network is larger than a file may be, or PyTorch cannot trace it.
    """
    need("onnx")
    need("onnxscript")
    size = sum(p.numel() * p.element_size() for p in kind.network.parameters())
    if size > LARGEST:
        raise ModelError(f"the student's weights take {size / 2**30:.1f} GiB, and an ONNX file holds less than 2 GiB")
    inputs = graph_inputs(kind.collate(rows))
    for module in kind.network.modules():
        if hasattr(module, "config"):
            module.config.use_cache = False  # a decoder would hand out its keys and values too
    with quietly():
        try:
            program = torch.onnx.export(
                _Graph(kind.network, list(inputs)).eval(),
                tuple(inputs.values()),
                input_names=list(inputs),
                output_names=["logits"],
                # All tensors are one variadic argument.
                dynamic_shapes=(tuple(dict(enumerate(AXES[tensor.ndim])) for tensor in inputs.values()),),
                dynamo=True,
                verbose=False,
            )
        except torch.onnx.errors.OnnxExporterError as error:
            reason = (str(error.__cause__ or error).strip() or type(error).__name__).splitlines()[0]
            raise ModelError(
                f"PyTorch cannot write {type(kind.network).__name__} as ONNX ({reason}); keep to the PyTorch student"
            ) from error
        assert program is not None
        program.save(path, external_data=False)
