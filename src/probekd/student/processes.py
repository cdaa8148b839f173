"""The processes that train one student together, as ``accelerate launch``, ``torchrun`` and MPI start them."""

from __future__ import annotations

import torch.distributed
from accelerate.utils.environment import get_int_from_env

# MPI's own names, by which accelerate finds its processes on CPUs; it sets the first of each only once training begins.
_SIZES = ("WORLD_SIZE", "PMI_SIZE", "OMPI_COMM_WORLD_SIZE", "MV2_COMM_WORLD_SIZE")
_RANKS = ("RANK", "PMI_RANK", "OMPI_COMM_WORLD_RANK", "MV2_COMM_WORLD_RANK")


def process_count() -> int:
    """How many there are; 1 when nothing launched several."""
    return int(get_int_from_env(_names(_SIZES), 1))


def is_main() -> bool:
    """Whether this is the one that writes files and reports progress."""
    return int(get_int_from_env(_names(_RANKS), 0)) == 0


def _names(names: tuple[str, ...]) -> tuple[str, ...]:
    """On GPUs accelerate does not go by MPI's."""
    return names[:1] if torch.cuda.is_available() else names


def wait_for_all() -> None:
    """Return when every process has come here."""
    if torch.distributed.is_available() and torch.distributed.is_initialized():
        torch.distributed.barrier()
