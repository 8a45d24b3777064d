"""How much memory this process holds, and how much it may have."""

from __future__ import annotations

import os
import resource
import sys
from pathlib import Path

import torch

from expunge.errors import UsageRefused


def resident_memory() -> float:
    """Bytes that this process holds."""
    try:
        return float(int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE"))
    except OSError:
        unit = 1 if sys.platform == "darwin" else 1024
        return float(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit)


def available_memory(device: str) -> float:
    """Bytes that may be held on a device (cpu, cuda) of this machine, what this process holds on a CPU included."""
    if device == "cuda":
        if not torch.cuda.is_available():
            raise UsageRefused(
                "No CUDA device is to be had here. Give --device-memory, the gigabytes of the one meant."
            )
        return float(torch.cuda.mem_get_info()[1])
    found = [float(os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE"))]
    info, limit = Path("/proc/meminfo"), Path("/sys/fs/cgroup/memory.max")
    if info.exists():
        lines = dict(line.split(":", 1) for line in info.read_text().splitlines())
        found.append(float(lines["MemAvailable"].split()[0]) * 1024 + resident_memory())
    if limit.exists() and limit.read_text().strip().isdigit():
        found.append(float(limit.read_text()))
    return min(found)
