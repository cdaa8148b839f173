"""What can answer for a student: PyTorch, or ONNX Runtime with one of the files of an export."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Protocol

import numpy as np

from probekd.student.model import Student, StudentInfo
from probekd.student.onnx import Backend
from probekd.tasks.base import Example


class Predictor(Protocol):
    """A student that is ready to answer."""

    @property
    def info(self) -> StudentInfo:
        """What is known of its training."""
        ...

    def predict_proba(self, examples: Sequence[Example], *, batch_size: int = 64) -> list[np.ndarray]:
        """See ``Student.predict_proba``."""
        ...


def open_student(directory: str | Path, backend: Backend = "torch", *, trust_remote_code: bool = False) -> Predictor:
    """Load a student for a backend.

    Raises:
        ModelError: not a student directory, or one without the ONNX file that is asked for.
    """
    if backend == "torch":
        return Student.load(directory, trust_remote_code=trust_remote_code)
    from probekd.student.onnx.runtime import OnnxStudent

    return OnnxStudent.load(directory, backend, trust_remote_code=trust_remote_code)
