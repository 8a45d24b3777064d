"""GS-LoRA's adapter (Zhao et al., 2024, arXiv 2403.11530): low-rank updates, set to 0 in blocks that hardly change.

    group of a block = sqrt( sum over its factors A, B of ||.||_F^2 );   below `below`:  B <- 0 in that block

`GroupPenalty` (in `GSLoRA()`) drives the groups of blocks that need not change towards 0, but AdamW leaves them
oscillating near it. When training has ended, those groups are set to 0, and the run's last event reports the blocks
that
still change (`groups.left`) and the norm of each group (`groups.norms`). A block that is switched off has its original
weights, to the bit. Without the penalty no group falls that low: A alone starts at about sqrt(r / 3) a layer.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
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
    """A low-rank adapter that drops the update of blocks whose group norm is small."""

    adapter: LoRA | Bounded = LoRA()
    """The adapter that is trained. The paper's is LoRA of rank 8 on the MLP layers."""
    below: float = 0.05
    """Blocks whose group norm ends below this are switched off; 0 switches none off."""

    def __post_init__(self) -> None:
        if not 0 <= self.below < float("inf"):
            raise UsageRefused(f"The `below` of GroupSparse must be at least 0 and finite. Got {self.below!r}.")

    @property
    def rank(self) -> int:
        """Rank of that adapter."""
        return self.adapter.rank

    def check(self, network: Network) -> None:
        self.adapter.check(network)

    def insert(self, network: Network, request: Request) -> Network:
        return self.adapter.insert(network, request)

    def close(self, adapted: Network) -> BlockGroups:
        """Switch off the blocks with small groups; returns the norm of each group and the remaining blocks."""
        groups = self.groups(adapted)
        norms = {number: _norm(group.values()) for number, group in groups.items()}
        left = [number for number, norm in norms.items() if norm >= self.below]
        for number in norms.keys() - left:
            for name, factor in groups[number].items():
                if "_B." in name:  # with B at 0 the update is 0, whatever the map
                    factor.data.zero_()
        return BlockGroups(tuple(norms.values()), tuple(left))

    def groups(self, adapted: Network) -> dict[int, dict[str, Tensor]]:
        """The trainable parameters of each block, by its number; blocks without any are left out."""
        found: dict[int, dict[str, Tensor]] = {}
        for number, block in enumerate(blocks(adapted.module)):
            group: dict[str, Tensor] = {
                name: p for name, p in adapted.trainable().items() if name.startswith(f"{block}.")
            }
            found |= {number: group} if group else {}
        return found

    def merge(self, adapted: Network) -> Network:
        return self.adapter.merge(adapted)

    def deltas(self, adapted: Network, before: Network) -> Iterator[tuple[str, Float[Tensor, "out in"]]]:
        return self.adapter.deltas(adapted, before)

    def save(self, adapted: Network, folder: Path) -> None:
        self.adapter.save(adapted, folder)


def _norm(factors: Iterable[Tensor]) -> float:
    return float(torch.stack([factor.detach().float().norm() for factor in factors]).norm())
