"""The machine that a run is planned for, what it has, and which settings would make a run fit into it."""

from __future__ import annotations

import os
import resource
import sys
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from expunge.adapters.bounded import Bounded
from expunge.adapters.full import Full
from expunge.errors import UsageRefused
from expunge.methods.finetune import Finetune

if TYPE_CHECKING:
    from expunge.core.method import Method

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
PROCESSES = 64
"""Processes that a remedy names at most."""


@dataclass(frozen=True)
class Machine:
    """Where the run would be done."""

    device: str = "cpu"
    processes: int = 1
    memory: float | None = None
    """Bytes of each device; None: what this machine has."""
    dtype: str | None = None
    """Precision of the weights; None: float32 on a CPU, elsewhere that of the file."""
    rate: float | None = None
    """FLOPs that a device of another machine achieves in a second; None: this machine is timed."""
    hold: str = "whole"
    """What each of several processes holds of a model that is audited: whole, or cut."""

    def __post_init__(self) -> None:
        if self.device not in ("cpu", "cuda"):
            raise UsageRefused(f"--device '{self.device}': `plan` knows cpu and cuda.")
        if not 1 <= self.processes <= 65536:
            raise UsageRefused(f"--processes must be from 1 to 65536. Got {self.processes}.")
        if self.memory is not None and not 0 < self.memory < 1e18:
            raise UsageRefused("--device-memory must be a positive number of gigabytes.")
        if self.rate is not None and not 0 < self.rate < 1e24:
            raise UsageRefused("--rate must be a positive number of TFLOP/s.")
        if self.dtype is not None and self.dtype not in DTYPES:
            raise UsageRefused(f"--dtype '{self.dtype}' is not known. Allowed: {', '.join(DTYPES)}.")
        if self.dtype and self.dtype != "float32" and self.device == "cpu":
            raise UsageRefused(f"--dtype {self.dtype}: on a CPU weights are held in float32. Give --device cuda.")


def held() -> float:
    """Bytes that this process holds, which has imported what a run imports."""
    try:
        pages = int(Path("/proc/self/statm").read_text().split()[1])
        return float(pages * os.sysconf("SC_PAGE_SIZE"))
    except OSError:
        unit = 1 if sys.platform == "darwin" else 1024
        return float(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit)


def room_of(device: str, processes: int) -> float:
    """Bytes that each process may have on this machine."""
    if device == "cuda":
        if not torch.cuda.is_available():
            raise UsageRefused(
                "No CUDA device is to be had here. Give --device-memory, the gigabytes of the one meant."
            )
        return float(torch.cuda.mem_get_info()[1])
    rooms = [float(os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE"))]
    info = Path("/proc/meminfo")
    if info.exists():
        lines = dict(line.split(":", 1) for line in info.read_text().splitlines())
        rooms.append(float(lines["MemAvailable"].split()[0]) * 1024 + held())
    limit = Path("/sys/fs/cgroup/memory.max")
    if limit.exists() and limit.read_text().strip().isdigit():
        rooms.append(float(limit.read_text()))
    return min(rooms) / processes


# What would fit


def remedy(method: Method, machine: Machine, fits: Callable[[Method, Machine], bool]) -> list[str]:
    """The settings with which a run fits, as a user writes them: one if one is enough, else as few as were found."""
    changes = _changes(method, machine)
    for change in changes:
        if fits(*_changed(method, machine, [change])):
            return [change.said]
    for count in range(2, len(changes) + 1):
        first = changes[:count]
        if fits(*_changed(method, machine, first)):
            return [change.said for change in _needed(method, machine, first, fits)]
    return []


@dataclass(frozen=True)
class _Change:
    said: str
    method: Callable[[Any], Any] = lambda method: method
    machine: Callable[[Machine], Machine] = lambda machine: machine


def _changes(method: Method, machine: Machine) -> list[_Change]:
    """From what costs least to what costs most."""
    found = _settings(method) if isinstance(method, Finetune) else []
    if machine.device == "cuda" and machine.dtype != "bfloat16":
        found.append(_Change("--dtype bfloat16", machine=lambda m: replace(m, dtype="bfloat16")))
    if not isinstance(method, Finetune):
        return found  # it works on the whole
    if machine.device == "cuda" and machine.hold != "cut":
        found.append(_Change("--hold cut", machine=lambda m: replace(m, hold="cut")))
    count = 2 * machine.processes
    while machine.device == "cuda" and count <= PROCESSES:
        found.append(_Change(f"--processes {count}", machine=lambda m, count=count: replace(m, processes=count)))
        count *= 2
    return found


def _settings(method: Finetune) -> list[_Change]:
    found = []
    if method.accumulate < method.batch:
        found.append(_Change(f"accumulate={method.batch}", lambda m: replace(m, accumulate=m.batch)))
    if method.activations == "kept":
        found.append(_Change("activations='recomputed'", lambda m: replace(m, activations="recomputed")))
    if isinstance(method.adapter, Full):
        found.append(_Change("adapter=Bounded() in place of Full()", lambda m: replace(m, adapter=Bounded())))
    return found


def _changed(method: Method, machine: Machine, changes: list[_Change]) -> tuple[Method, Machine]:
    for change in changes:
        method, machine = change.method(method), change.machine(machine)
    return method, machine


def _needed(
    method: Method, machine: Machine, changes: list[_Change], fits: Callable[[Method, Machine], bool]
) -> list[_Change]:
    """The changes without those that may be left out."""
    for change in changes:
        fewer = [other for other in changes if other is not change]
        if fits(*_changed(method, machine, fewer)):
            return _needed(method, machine, fewer, fits)
    return changes
