"""What a figure was measured on."""

from __future__ import annotations

import os
import platform
import re
from pathlib import Path
from typing import Any

import torch
from threadpoolctl import threadpool_info


def machine() -> dict[str, Any]:
    """Cores, memory and threads; nothing that names the machine."""
    info = Path("/proc/cpuinfo")
    model = re.search(r"model name\s*: (.*)", info.read_text()) if info.is_file() else None
    return {
        "cpu": model[1] if model else platform.machine(),
        "instructions": torch.backends.cpu.get_cpu_capability(),
        "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "ram_gib": round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30, 1),
        "threads": {
            "torch": torch.get_num_threads(),
            "blas": max((p["num_threads"] for p in threadpool_info() if p["user_api"] == "blas"), default=1),
        },
    }
