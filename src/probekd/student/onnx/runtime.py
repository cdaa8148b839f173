"""A student run by ONNX Runtime, on the batches that it has in PyTorch."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Self

import numpy as np
import torch
from torch import Tensor

from probekd.errors import ModelError
from probekd.student.answers import distributions
from probekd.student.kinds import StudentKind
from probekd.student.model import Student, StudentInfo
from probekd.student.onnx import FILES, FOLDER, Backend, need
from probekd.student.onnx.graph import graph_inputs
from probekd.tasks.base import Example


@dataclass(frozen=True, kw_only=True, eq=False)
class OnnxStudent:
    """A student whose network is an ONNX file; otherwise as ``Student``.

    Attributes:
        info: What is known of its training.
        model: Encodes and collates its rows.
        session: ONNX Runtime's, on the CPU.
    """

    info: StudentInfo
    model: StudentKind = field(repr=False)
    session: Any = field(repr=False)

    @classmethod
    def load(cls, directory: str | Path, backend: Backend, *, trust_remote_code: bool = False) -> Self:
        """Read an exported student.

        Raises:
            ModelError: not a student directory, not exported, or ONNX Runtime is missing or cannot load the file.
        """
        path = Path(directory) / FOLDER / FILES[backend]
        student = Student.load(directory, trust_remote_code=trust_remote_code)
        if not path.is_file():
            int8 = " --int8" if backend == "onnx-int8" else ""
            raise ModelError(f"{path}: no such file; write it with  probekd export {directory} --format onnx{int8}")
        return cls(info=student.info, model=student.model, session=open_session(path))

    def predict_proba(self, examples: Sequence[Example], *, batch_size: int = 64) -> list[np.ndarray]:
        """See ``Student.predict_proba``."""
        cpu = torch.device("cpu")
        return distributions(self.model, self._logits, examples, device=cpu, batch_size=batch_size)

    def _logits(self, batch: dict[str, Tensor]) -> Tensor:
        (found,) = self.session.run(["logits"], {n: tensor.numpy() for n, tensor in graph_inputs(batch).items()})
        logits = torch.from_numpy(found)
        return logits.masked_fill(~batch["present"], -torch.inf) if "present" in batch else logits


def open_session(path: Path) -> Any:
    """ONNX Runtime's session of a file, on the CPU, with as many threads as PyTorch has.

    Raises:
        ModelError: ONNX Runtime is not installed, or cannot load the file.
    """
    onnxruntime = need("onnxruntime")
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    options.log_severity_level = 3  # its advice on graphs is for those who write them
    try:
        return onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    except Exception as error:  # what it raises has no base of its own
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise ModelError(f"{path}: ONNX Runtime cannot load it ({reason}); export the student again") from None
