"""Study: the question "does distilling from probes pay?", answered by one command for any tasks.

Names are imported on first use, so that ``import probekd.study`` does not load torch.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from probekd.study.config import StudyConfig, load_study
    from probekd.study.run import gather_study, run_study

__all__ = ["StudyConfig", "gather_study", "load_study", "run_study"]

_MODULES = {"StudyConfig": "config", "load_study": "config", "gather_study": "run", "run_study": "run"}


def __getattr__(name: str) -> Any:
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{_MODULES[name]}"), name)
