"""Full fine-tuning: every weight is trainable.

The network is copied, since the original is the reference model. Where two copies do not fit, use an adapter.
"""

import copy
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from expunge.adapters.bounded import Bounded
from expunge.core.adapter import Adapter
from expunge.core.model import Network
from expunge.core.request import Request

if TYPE_CHECKING:
    from jaxtyping import Float
    from torch import Tensor


@dataclass(frozen=True)
class Full(Adapter):
    """All floating-point parameters, in float32 at least."""

    def insert(self, network: Network, request: Request) -> Network:
        module = copy.deepcopy(network.module)
        if next(module.parameters()).dtype in (torch.bfloat16, torch.float16):
            module = module.float()  # a step of 1e-5 is lost in bfloat16's rounding for most weights
        module.requires_grad_(True)
        return network.fork(module.eval())

    def cheaper(self) -> Iterator[tuple[str, Adapter]]:
        yield "adapter=Bounded() in place of Full()", Bounded()

    def merge(self, adapted: Network) -> Network:
        return adapted.fork(copy.deepcopy(adapted.module).requires_grad_(False))

    def deltas(self, adapted: Network, before: Network) -> Iterator[tuple[str, "Float[Tensor, 'out in']"]]:
        for (name, now), was in zip(adapted.module.named_parameters(), before.module.parameters(), strict=True):
            if now.dim() >= 2:
                yield name.removesuffix(".weight"), (now.detach() - was.detach()).flatten(1)

    def save(self, adapted: Network, folder: Path) -> None:
        """Does nothing: the result is the whole network."""
