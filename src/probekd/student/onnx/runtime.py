"""A student run by ONNX Runtime, on the batches that it has in PyTorch."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Self

import numpy as np
import torch
from torch import Tensor

from probekd.config import KindName
from probekd.errors import ModelError
from probekd.student.inputs import Encoded
from probekd.student.kinds import StudentKind, kind_named
from probekd.student.logits import row_logits
from probekd.student.model import StudentInfo
from probekd.student.onnx import FILES, FOLDER, Backend, need
from probekd.student.onnx.graph import ANSWERS
from probekd.targets import softmax
from probekd.tasks.base import Example


@dataclass(frozen=True, eq=False)
class Session:
    """ONNX Runtime's session of a file, in the place of a network.

    Attributes:
        runtime: The session, on the CPU.
        answer: From logits to what the network would give.
    """

    runtime: Any
    answer: Callable[[Tensor], Any]

    @property
    def device(self) -> torch.device:
        """Where batches go."""
        return torch.device("cpu")

    def eval(self) -> Self:
        """The session; there is nothing else that it could do."""
        return self

    def __call__(self, **inputs: Tensor) -> Any:
        """What the network gives for one batch."""
        (logits,) = self.runtime.run(["logits"], {name: tensor.numpy() for name, tensor in inputs.items()})
        return self.answer(torch.from_numpy(logits))


@dataclass(frozen=True, kw_only=True, eq=False)
class OnnxStudent:
    """A student whose network is an ONNX file; otherwise as ``Student``.

    Attributes:
        info: What is known of its training.
        ready: Encodes and collates its rows; it has no network.
        network: The file.
    """

    info: StudentInfo
    ready: StudentKind = field(repr=False)
    network: Session = field(repr=False)

    @classmethod
    def load(cls, directory: str | Path, backend: Backend, *, trust_remote_code: bool = False) -> Self:
        """Read an exported student.

        Raises:
            ModelError: not a student directory, not exported, or ONNX Runtime is missing or cannot load the file.
        """
        directory = Path(directory)
        info = StudentInfo.load(directory)
        path = directory / FOLDER / FILES[backend]
        if not path.is_file():
            int8 = " --int8" if backend == "onnx-int8" else ""
            raise ModelError(f"{path}: no such file; write it with  probekd export {directory}{int8}")
        config = info.loading(directory, trust_remote_code=trust_remote_code)
        ready = kind_named(info.student_kind).prepare(directory, info.known_task, config)
        return cls(info=info, ready=ready, network=open_session(path, info.student_kind))

    def predict_proba(self, examples: Sequence[Example], *, batch_size: int = 64) -> list[np.ndarray]:
        """See ``Student.predict_proba``."""
        logits = row_logits(self, self.ready.encode(examples), batch_size=batch_size)
        return [softmax(row / self.info.temperature) for row in logits]

    def collate(self, rows: Sequence[Encoded]) -> dict[str, Tensor]:
        """See ``StudentKind``."""
        return self.ready.collate(rows)

    def logits(self, network: Session, batch: dict[str, Tensor]) -> Tensor:
        """See ``StudentKind``."""
        return self.ready.logits(network, batch)


def open_session(path: Path, kind: KindName) -> Session:
    """The file of a student of some kind, with as many threads as PyTorch has.

    Raises:
        ModelError: ONNX Runtime is not installed, or cannot load the file.
    """
    onnxruntime = need("onnxruntime")
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    options.log_severity_level = 3  # its advice on graphs is for those who write them
    try:
        runtime = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    except Exception as error:  # what it raises has no base of its own
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise ModelError(f"{path}: ONNX Runtime cannot load it ({reason}); export the student again") from None
    return Session(runtime, ANSWERS[kind])
