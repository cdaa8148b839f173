"""What of a student goes into an ONNX file, and how it is written."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from torch import Tensor

from probekd.config import KindName
from probekd.errors import ModelError
from probekd.student.inputs import Encoded
from probekd.student.kinds import StudentKind
from probekd.student.onnx import need
from probekd.student.onnx.quiet import quietly

# Kinds whose ``logits`` are a function of tensors (b, tokens) or (b, options, tokens) and nothing else of a row.
EXPORTED: tuple[KindName, ...] = ("head",)
AXES = {2: ("batch", "tokens"), 3: ("batch", "options", "tokens")}
# A protocol buffer holds less than 2 GiB.
LARGEST = 2**31 - 2**20


class _Logits(torch.nn.Module):
    """A student's logits (b, k) as a function of its inputs, in the order of their names."""

    def __init__(self, kind: StudentKind, inputs: Sequence[str]) -> None:
        super().__init__()
        self.network, self.kind, self.inputs = kind.network, kind, tuple(inputs)

    def forward(self, *tensors: Tensor) -> Tensor:
        return self.kind.logits(self.network, dict(zip(self.inputs, tensors, strict=True)))


def graph_inputs(batch: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Of a collated batch what the graph takes: which options are there is for the caller, as in Transformers."""
    return {name: tensor for name, tensor in batch.items() if name != "present"}


def write_graph(kind: StudentKind, rows: Sequence[Encoded], path: Path) -> None:
    """Write a student as one ONNX file, for batches, option counts and lengths of any size.

    Its inputs are the tokenizer's, its output ``logits`` (b, k) is the network's own: no temperature, no softmax.

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
    # A decoder would hand out its keys and values too.
    kind.network.config.use_cache = False
    with quietly():
        try:
            program = torch.onnx.export(
                _Logits(kind, list(inputs)).eval(),
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
