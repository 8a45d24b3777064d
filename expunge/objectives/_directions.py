"""Directions in the space of hidden states that representations are steered to."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

if TYPE_CHECKING:
    from jaxtyping import Float


def positive_unit(like: Float[Tensor, "rows width"], seed: int) -> Float[Tensor, " width"]:
    """A vector of length 1 whose entries are drawn uniformly from [0, 1); the same in every step, by the seed.

    It is drawn on the CPU each time, so nothing is stored and a resumed run has the same direction.
    """
    drawn = torch.rand(like.shape[-1], generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    unit: Tensor = drawn / drawn.norm()
    return unit.to(like.device, like.dtype)
