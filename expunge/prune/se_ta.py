"""SeTa, scale efficient training (Zhou et al., 2025, CVPR, arXiv 2503.13385): a window that slides from easy to hard.

    1. a random share `random` of the records is left out of a pass
    2. the others are put into `groups` groups by their last loss (k-means)
    3. the pass reads max(1, round(window * groups)) neighbouring groups; the next pass begins one group further, and
       after the hardest at the easiest again. The first pass reads all groups.
    4. the last passes leave out the random share alone: `until` is the share of the passes that slides

No loss is weighed. `round` takes a half to the even number, as the authors' code does: 0.9 * 5 = 4.5 are 4 groups, and
by the paper's ceiling 5, which prune nothing. Hold it against `DynamicRandom` at the same share: on small data they
tie. Published: groups 5, window 0.9 and random 0.1 for CIFAR, 0.6 and 0 for ImageNet.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

from expunge.primitives.settings import check_least
from expunge.prune._kinds import Kept, Pruner, check_share, draw_share

if TYPE_CHECKING:
    from jaxtyping import Float, Int
    from torch import Tensor

ROUNDS = 100
"""Most rounds of k-means."""


@dataclass(frozen=True)
class SeTa(Pruner):
    """Records of neighbouring losses, easier and harder ones in turn."""

    groups: int = 5
    """Groups by loss; the fewer, the coarser the window."""
    window: float = 0.9
    """The share of the groups that a pass reads: less saves more."""
    random: float = 0.1
    """The share of the records that is left out of each pass at random."""
    until: float = 0.875
    """The share of the passes after which only the random share is left out."""

    def __post_init__(self) -> None:
        check_least(self, groups=1)
        check_share(self, "window", 0.0, 1.0)
        check_share(self, "random", 0.0, 0.9)
        check_share(self, "until", 0.0, 1.0)

    def keep(self, losses: Float[Tensor, " records"], epoch: int, epochs: int, draw: torch.Generator) -> Kept:
        some = draw_share(len(losses), 1 - self.random, draw)
        if epoch == 0 or epoch >= self.until * epochs:
            return Kept.alike(some)
        group = _group(losses[some], self.groups)
        found = int(group.max()) + 1
        wide = min(found, max(1, round(self.window * self.groups)))
        start = (epoch - 1) % (found - wide + 1)
        return Kept.alike(some[(group >= start) & (group < start + wide)])


def _group(losses: Float[Tensor, " records"], most: int) -> Int[Tensor, " records"]:
    """The group of each loss from 0, the least, by k-means on a line from quantiles; equal losses are of one group."""
    centres = torch.quantile(losses.double(), (torch.arange(most, dtype=torch.float64) + 0.5) / most).unique()
    for _ in range(ROUNDS):
        nearest = torch.bucketize(losses.double(), (centres[1:] + centres[:-1]) / 2)
        moved = torch.stack([losses[nearest == k].double().mean() for k in nearest.unique()])
        if torch.equal(moved, centres):
            break
        centres = moved
    nearest = torch.bucketize(losses.double(), (centres[1:] + centres[:-1]) / 2)
    group: Tensor = torch.unique(nearest, return_inverse=True)[1]
    return group
