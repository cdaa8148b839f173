"""The processes that train one student together, as ``accelerate launch`` and ``torchrun`` start them."""

from __future__ import annotations

import os

import torch.distributed


def process_count() -> int:
    """How many there are; 1 when nothing launched several."""
    return int(os.environ.get("WORLD_SIZE", "1"))


def is_main() -> bool:
    """Whether this is the one that writes files and reports progress."""
    return int(os.environ.get("RANK", "0")) == 0


def wait_for_all() -> None:
    """Return when every process has come here."""
    if torch.distributed.is_available() and torch.distributed.is_initialized():
        torch.distributed.barrier()
