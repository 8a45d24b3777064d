"""The loss of the previous step, for objectives whose weights follow it.

The micro-batches of an accumulated step are read one after the other, and none of them knows the step's whole loss. So
an objective uses the steps before: its weights change between steps, never within one, and the micro-batches of a step
add up to what one batch would give.
"""

from __future__ import annotations

import torch
from torch import distributed


def last_step(memory: dict[str, float], step: int, value: float) -> float | None:
    """Add a micro-batch's value to its step's. At the first call of a new step, the previous step's value; else None.

    Step 0 is outside of a run and never ends. With several processes all get the sum over them.
    """
    whole = _sum_over_processes(memory["sum"]) if step != memory.get("step") and memory.get("step") else None
    if step != memory.get("step"):
        memory |= {"step": step, "sum": 0.0}
    memory["sum"] += value
    return whole


def _sum_over_processes(value: float) -> float:
    """The sum over all processes, the same to the bit in each."""
    if not (distributed.is_available() and distributed.is_initialized()):
        return value
    total = torch.tensor(value, dtype=torch.float64)
    distributed.all_reduce(total)
    return float(total)
