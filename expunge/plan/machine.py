"""The machine that a run is planned for, what it has, and which settings would make a run fit into it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import cached_property
from typing import TYPE_CHECKING

import torch

from expunge.runtime.memory import available_memory

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

    @property
    def here(self) -> bool:
        """Whether this machine is meant, so that it can be timed."""
        return self.memory is None and self.processes == 1 and (self.device == "cpu" or torch.cuda.is_available())

    @cached_property
    def room(self) -> float:
        """Bytes that each process may have."""
        return self.memory or available_memory(self.device) / (self.processes if self.device == "cpu" else 1)


def remedy(method: Method, machine: Machine, shared: bool, fits: Callable[[Method, Machine], bool]) -> list[str]:
    """The settings with which a run fits, as a user writes them: one if one is enough, else one after the other."""
    for said, other, where in _changes(method, machine, shared):
        if fits(other, where):
            return [said]
    taken: list[str] = []
    while change := next(_changes(method, machine, shared), None):
        said, method, machine = change
        taken = [*(text for text in taken if not said.startswith(text.rstrip("0123456789"))), said]
        if len(taken) > 1 and fits(method, machine):
            return taken
    return []


def _changes(method: Method, machine: Machine, shared: bool) -> Iterator[tuple[str, Method, Machine]]:
    """What to write, and the method and machine that it makes; from what costs least to what costs most."""
    for said, other in method.cheaper():
        yield said, other, machine
    if machine.device != "cuda":
        return
    if machine.dtype != "bfloat16":
        yield "--dtype bfloat16", method, replace(machine, dtype="bfloat16")
    if shared and machine.hold != "cut":  # other methods work on the whole
        yield "--hold cut", method, replace(machine, hold="cut")
    for count in (2**power * machine.processes for power in range(1, 7) if shared):
        if count <= PROCESSES:
            yield f"--processes {count}", method, replace(machine, processes=count)
