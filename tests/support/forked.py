"""Processes that a test starts, kills and starts again: forked from one in which the libraries are loaded, which takes seconds."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from multiprocessing import get_context
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

CONTEXT = get_context("forkserver")
# Nothing is computed there: a fork would not have the threads that were started for it.
CONTEXT.set_forkserver_preload(
    [
        "probekd.cli",
        "probekd.run",
        "probekd.student.fit",
        "probekd.report.page",
        "sklearn.linear_model",
        "transformers.trainer",
        "transformers.models.bert.modeling_bert",
        "transformers.models.llama.modeling_llama",
    ]
)


def start(work: Callable[..., object], *arguments: object, log: Path, **environment: str) -> BaseProcess:
    """Begin ``work``, a function of a module that can be imported; what it says is added to ``log``."""
    made = {**os.environ, "OMP_NUM_THREADS": "1", **environment}
    process = CONTEXT.Process(target=_begin, args=(work, arguments, log, made), daemon=True)
    process.start()
    return process


def ready(log: Path) -> None:
    """Have the libraries loaded, so that what is timed next is not."""
    finished(start(int, log=log), log)


def finished(process: BaseProcess, log: Path) -> None:
    """Wait for the end of a process that nobody killed."""
    process.join(timeout=300)
    assert process.exitcode == 0, log.read_text()


def _begin(work: Callable[..., object], arguments: tuple[Any, ...], log: Path, environment: dict[str, str]) -> None:
    os.environ.clear()
    os.environ.update(environment)
    with log.open("a") as said:
        for stream in (sys.stdout, sys.stderr):
            os.dup2(said.fileno(), stream.fileno())
    import torch

    torch.set_num_threads(1)
    work(*arguments)


def probekd(*arguments: str) -> None:
    """The command line."""
    from probekd.cli import main

    sys.argv = ["probekd", *arguments]
    main()
