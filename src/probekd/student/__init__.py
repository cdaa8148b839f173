"""The student: a small encoder with a head, trained on soft targets, saved as a plain Transformers directory.

Names are imported on first use, so that ``import probekd.student`` does not load torch.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from probekd.student.cutting import cut_student
    from probekd.student.distillation import distill
    from probekd.student.embed import frozen_embeddings
    from probekd.student.model import Student, StudentInfo
    from probekd.student.predict import predict_file

__all__ = ["Student", "StudentInfo", "cut_student", "distill", "frozen_embeddings", "predict_file"]

_MODULES = {
    "Student": "model",
    "StudentInfo": "model",
    "cut_student": "cutting",
    "distill": "distillation",
    "frozen_embeddings": "embed",
    "predict_file": "predict",
}


def __getattr__(name: str) -> Any:
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{_MODULES[name]}"), name)
