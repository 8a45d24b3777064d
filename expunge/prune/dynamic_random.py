"""Dynamic random pruning: each pass reads another random share of the records. The control of every other pruner.

Whatever a pruner chooses by losses has to be held against as many records that were drawn anew for each pass; a share
drawn once for all passes (static random) loses accuracy, and is no control.
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
class DynamicRandom(Pruner):
    """A random share of the records, drawn anew for each pass."""

    share: float = 0.5
    """How many of the records a pass reads."""

    def __post_init__(self) -> None:
        check_share(self, "share", 0.001, 1.0)

    def keep(self, losses: Float[Tensor, " records"], epoch: int, epochs: int, draw: torch.Generator) -> Kept:
        return Kept.alike(draw_share(len(losses), self.share, draw))
