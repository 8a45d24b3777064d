"""Importance of a weight's rows to the forget set relative to the retain set, and the low-rank factors weighted by it.

`Fila` starts from these; its docstring has the formula.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from expunge.errors import DataRefused
from expunge.internals.gradients import Slopes, loss

if TYPE_CHECKING:
    from jaxtyping import Float

    from expunge.core.model import Batch, Network
    from expunge.core.request import Example, Request

TINY = 1e-5
"""The paper's epsilon, added to importances and row weights before a division."""
MORE, ROUNDS = 8, 4
"""Directions beyond the rank, and rounds of power iteration, of the randomised SVD."""


def factors(
    weight: Float[Tensor, "out in"], rows: Float[Tensor, " out"], rank: int
) -> tuple[Float[Tensor, "r in"], Float[Tensor, "out r"]]:
    """A and B whose product best approximates `weight` with its rows weighted by `rows`; of lower rank where it has."""
    wide = weight.to(torch.promote_types(weight.dtype, torch.float32))
    few = min(rank, *weight.shape)
    u, s, v = torch.svd_lowrank(rows[:, None] * wide, min(few + MORE, *weight.shape), ROUNDS)
    root = s[:few].sqrt()
    return root[:, None] * v[:, :few].T, (u[:, :few] * root) / (rows + TINY)[:, None]


def row_weights(network: Network, request: Request, names: Sequence[str], batch: int) -> dict[str, Tensor]:
    """The root of each row's summed relative importance, by layer."""
    if not request.retain:
        raise DataRefused("Fila weighs the forget set against the retain set. Give one with --retain.")
    wanted = {f"{name}.weight": name for name in names}
    stride = max(1, len(request.retain) // len(request.forget))
    forget, retain = (
        _importance(network, examples, batch, wanted)
        for examples in (request.forget, request.retain[::stride][: len(request.forget)])
    )
    found = {}
    for key, name in wanted.items():
        relative = forget.pop(key) / (TINY + retain.pop(key))
        found[name] = relative.sum(0 if is_transposed(network.module.get_submodule(name)) else 1).sqrt()
    return found


def _importance(network: Network, examples: Sequence[Example], batch: int, names: dict[str, str]) -> dict[str, Tensor]:
    """Mean over batches, weighted by their rows, of the squared gradient of each named parameter."""
    slopes, total = Slopes(network, names), dict[str, Tensor]()
    rows = sum(example.rows for example in examples)
    for start in range(0, len(examples), batch):
        some: Batch = examples[start : start + batch]
        slopes.add(some, loss)
        share = sum(example.rows for example in some) / rows
        for name, slope in slopes.take():
            square = slope.square().mul_(share)
            total[name] = total[name].add_(square) if name in total else square
    return total


def is_transposed(layer: Any) -> bool:
    """Whether a layer's weight is [in, out], as GPT-2's are."""
    return not isinstance(layer, torch.nn.Linear)
