"""GS-LoRA's adapter (Zhao et al., 2024, arXiv 2403.11530): low-rank updates whose idle blocks are switched off.

    group of a block = sqrt( sum over its factors A, B of ||.||_F^2 );   below `below`:  B <- 0 in that block

`GroupPenalty` (in `GSLoRA()`) drives the groups of blocks that need not change towards 0, but AdamW leaves them
trembling near it. When the run has ended, what is left of those groups is cut off, and the run's last event says
which blocks still change (`groups.left`) and how large each group was (`groups.norms`). A block that is off has the
weights of before, to the bit. Without the penalty no group falls that low: A alone begins at about sqrt(r / 3) a layer.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from expunge.adapters.bounded import Bounded
from expunge.adapters.lora import LoRA
from expunge.core.adapter import Adapter
from expunge.errors import UsageRefused
from expunge.events import BlockGroups
from expunge.internals.blocks import blocks

if TYPE_CHECKING:
    from jaxtyping import Float

    from expunge.core.model import Network
    from expunge.core.request import Request


@dataclass(frozen=True)
class GroupSparse(Adapter):
    """A low-rank adapter that keeps the blocks whose group is not next to nothing."""

    adapter: LoRA | Bounded = LoRA()
    """What is trained. The paper's is LoRA of rank 8 on the MLP layers."""
    below: float = 0.05
    """Blocks whose group norm ends below this are switched off; 0 switches none off."""

    def __post_init__(self) -> None:
        if not 0 <= self.below < float("inf"):
            raise UsageRefused(f"The `below` of GroupSparse must be at least 0 and finite. Got {self.below!r}.")

    @property
    def rank(self) -> int:
        """That of the adapter trained."""
        return self.adapter.rank

    def insert(self, network: Network, request: Request) -> Network:
        return self.adapter.insert(network, request)

    def close(self, adapted: Network) -> BlockGroups:
        """Switch off the blocks that need not change; the norm of each group, and the blocks that are left."""
        groups = self.groups(adapted)
        norms = {number: _norm(group.values()) for number, group in groups.items()}
        left = [number for number, norm in norms.items() if norm >= self.below]
        for number in norms.keys() - left:
            for name, factor in groups[number].items():
                if "_B." in name:  # with B at 0 the update is 0, whatever the map
                    factor.data.zero_()
        return BlockGroups(tuple(norms.values()), tuple(left))

    def groups(self, adapted: Network) -> dict[int, dict[str, Tensor]]:
        """What may move, by the number of the block that it stands in; blocks without anything are left out."""
        found: dict[int, dict[str, Tensor]] = {}
        for number, block in enumerate(blocks(adapted.module)):
            group = {name: p for name, p in adapted.trainable().items() if name.startswith(f"{block}.")}
            found |= {number: group} if group else {}
        return found

    def merge(self, adapted: Network) -> Network:
        return self.adapter.merge(adapted)

    def deltas(self, adapted: Network, before: Network) -> Iterator[tuple[str, Float[Tensor, "out in"]]]:
        return self.adapter.deltas(adapted, before)

    def save(self, adapted: Network, folder: Path) -> None:
        self.adapter.save(adapted, folder)


def _norm(factors: object) -> float:
    return float(torch.stack([factor.detach().float().norm() for factor in factors]).norm())
