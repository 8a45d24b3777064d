"""InfoBatch (Qin et al., 2024, ICLR, arXiv 2303.04947): fewer of the records that are learnt already, each for several.

    a record whose last loss is below the mean of all is left out with the chance q; one that stays counts 1 / (1 - q)

So a pass's gradient is that of all records on average. The last passes read everything: `until` is the share of the
passes that prunes. A step's loss here is a mean by weight, so that weights matter within a step only.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

from expunge.prune._kinds import Kept, Pruner, check_share, draw_share

if TYPE_CHECKING:
    from jaxtyping import Float
    from torch import Tensor


@dataclass(frozen=True)
class InfoBatch(Pruner):
    """All records of high loss and a share of the others, which count for those that are left out."""

    q: float = 0.5
    """The chance of a record of low loss to be left out of a pass."""
    until: float = 0.875
    """The share of the passes after which every record is read."""

    def __post_init__(self) -> None:
        check_share(self, "q", 0.0, 0.99)
        check_share(self, "until", 0.0, 1.0)

    def keep(self, losses: Float[Tensor, " records"], epoch: int, epochs: int, draw: torch.Generator) -> Kept:
        order = draw_share(len(losses), 1.0, draw)
        if epoch >= self.until * epochs:
            return Kept.alike(order)
        low = (losses < losses.mean())[order]
        stays = ~low | (torch.rand(len(order), generator=draw) >= self.q)
        weights = torch.where(low, 1 / (1 - self.q), 1.0).double()
        return Kept(order[stays], weights[stays]) if stays.any() else Kept.alike(order)
