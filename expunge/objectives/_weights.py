"""The trainable weights, for penalties that read them."""

from __future__ import annotations

from torch import Tensor
from torch.distributed.tensor import DTensor, Partial

from expunge.core.model import Network
from expunge.core.view import View
from expunge.errors import ModelRefused


def trainable_weights(now: View, name: str) -> dict[str, Tensor]:
    """The trainable weights by their names, sharded ones whole; `name` is the penalty's. Raises `ModelRefused`."""
    if not isinstance(now.model, Network):
        raise ModelRefused(f"{name} reads weights, and {type(now.model).__name__} has none.")
    return {key: _whole(weight) for key, weight in now.model.trainable().items()}


def _whole(weight: Tensor) -> Tensor:
    """The full tensor of a sharded weight; its gradient is summed over the ranks."""
    return weight.full_tensor(grad_placements=[Partial()]) if isinstance(weight, DTensor) else weight
