"""A student as an ONNX file: written, held against PyTorch, and run."""

from __future__ import annotations

import importlib
from pathlib import Path
from typing import Any, Literal

from probekd.errors import ModelError

Backend = Literal["torch", "onnx", "onnx-int8"]
"""What answers rows: PyTorch, or one of the two files that ``export_onnx`` writes."""
FOLDER = Path("onnx")
FILES: dict[Backend, str] = {"onnx": "model.onnx", "onnx-int8": "model_int8.onnx"}


def need(package: str) -> Any:
    """A package of the extra ``onnx``; raises ModelError naming the extra where it is not installed."""
    try:
        return importlib.import_module(package)
    except ImportError:
        raise ModelError(f"ONNX needs the package {package}: pip install 'probekd[onnx]'") from None
