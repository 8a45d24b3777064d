"""A loss step by step, for objectives that steer by it.

The parts of an accumulated step are read one after the other, and none of them knows the step's whole loss. So an
objective steers by the steps before: its setting changes between steps, never within one, and the parts of a step add
up to what one reading would give.
"""

from __future__ import annotations

import torch
from torch import distributed


def last_step(memory: dict[str, float], step: int, value: float) -> float | None:
    """Add a part's value to its step; at a new step's first call the whole value of the one before, else None.

    A step of number 0 stands outside of a run and is never over. Where processes share a step, all get the whole.
    """
    whole = _everywhere(memory["sum"]) if step != memory.get("step") and memory.get("step") else None
    if step != memory.get("step"):
        memory |= {"step": step, "sum": 0.0}
    memory["sum"] += value
    return whole


def _everywhere(value: float) -> float:
    """The sum over all processes, the same to the bit for each."""
    if not (distributed.is_available() and distributed.is_initialized()):
        return value
    total = torch.tensor(value, dtype=torch.float64)
    distributed.all_reduce(total)
    return float(total)
