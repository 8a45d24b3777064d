"""Worst-case forget sets (Fan et al., 2024, ECCV, arXiv 2403.07362): the records that are hardest to forget.

    min over w in [0, 1]^n, sum w = count  of  sum_i w_i CE(theta(w); z_i) + gamma |w|^2
    theta(w): epochs of sign descent from the model on  sum_i (1 - w_i) CE_i          (retain), or
                                                       sum_i (1 - 2 w_i) CE_i         (both)

Records whose loss stays low after they have been left out of the training, or trained away, are chosen. The sign of a
gradient hardly changes with w, so the slope of the outer loss is CE_i + 2 gamma w_i, and a round is: forget, read every
loss, w <- projection of w - alpha * slope. The losses are read in evaluation (the authors' code: in training).

`start='uniform'` begins at w = count / n: from the authors' random start and small alpha the search hardly moves. What
it finds is near the records of lowest loss, which is the control to hold it against, and it is skewed by class: count
them. It chooses among what the model was trained on, and reads no forget set. Published: 20 rounds of 10 epochs, alpha
1e-3, gamma 1e-4, a tenth of 45,000 images.
"""

from __future__ import annotations

import copy
import math
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, ClassVar, Literal

import torch

from expunge.core.model import Batch, Network
from expunge.errors import UsageRefused
from expunge.internals.gradients import Slopes, loss
from expunge.primitives.settings import check_finite, check_least, check_seed
from expunge.select._kinds import Pool, Selection, Selector, losses_by_record

if TYPE_CHECKING:
    from jaxtyping import Float
    from torch import Tensor

TOLERANCE = 1e-9


@dataclass(frozen=True)
class Hardest(Selector):
    """The records that a model still answers after it was made to forget them."""

    order: ClassVar[str] = "the hardest to forget first"

    count: int = 200
    """How many records are chosen."""
    rounds: int = 10
    """How often the model forgets and every record's loss is read."""
    epochs: int = 2
    """Passes through the pool in which it forgets."""
    learning_rate: float = 1e-3
    """By so much each weight moves in a step of the sign descent."""
    batch: int = 64
    """Records in a step."""
    alpha: float = 1.0
    """How far a record's share moves for each nat of its loss."""
    gamma: float = 0.0
    """Keeps shares apart from 0 and 1."""
    forget: Literal["retain", "both"] = "retain"
    """What a model that forgets descends on: the rest alone, or the rest less what is chosen."""
    start: Literal["uniform", "random"] = "uniform"
    """Shares at first: all alike, or `count` records drawn at random."""
    seed: int = 0
    """Draws the order of the records, and a random start."""

    def __post_init__(self) -> None:
        check_least(self, count=1, rounds=1, epochs=1, batch=1)
        check_finite(self, "gamma")
        check_seed(self)
        if not (0 < self.learning_rate < math.inf and 0 < self.alpha < math.inf):
            raise UsageRefused(
                f"Hardest: `learning_rate` and `alpha` must be positive and finite. "
                f"Got {self.learning_rate!r}, {self.alpha!r}."
            )

    @property
    def reads_forget(self) -> bool:
        return False

    @property
    def quota(self) -> int:
        return self.count

    def choose(self, network: Network, forget: Batch, pool: Pool) -> Selection:
        draw = torch.Generator().manual_seed(self.seed)
        shares = torch.full((len(pool),), self.count / len(pool), dtype=torch.float64)
        if self.start == "random":
            shares = torch.zeros_like(shares)
            shares[torch.randperm(len(pool), generator=draw)[: self.count]] = 1.0
        for _ in range(self.rounds):
            cost = losses_by_record(self._forget(network, pool, shares, draw), pool)
            shares = _project(shares - self.alpha * (cost + 2 * self.gamma * shares), self.count)
        # Of equal shares, as at 1, the lowest loss: the last round's.
        order = sorted(range(len(pool)), key=lambda k: (-float(shares[k]), float(cost[k])))
        return Selection(tuple(order[: self.count]))

    def _forget(
        self, network: Network, pool: Pool, shares: Float[Tensor, " records"], draw: torch.Generator
    ) -> Network:
        """The network after sign descent on the records, each by what its share leaves of it."""
        now = network.fork(copy.deepcopy(network.module))
        slopes, weights = Slopes(now), dict(now.module.named_parameters())
        for _ in range(self.epochs):
            for places in torch.randperm(len(pool), generator=draw).split(self.batch):
                self._add(slopes, pool, places.tolist(), shares)
                with torch.no_grad():
                    for name, slope in slopes.take():
                        weights[name].sub_(self.learning_rate * slope.sign().to(weights[name].dtype))
        return now

    def _add(self, slopes: Slopes, pool: Pool, places: list[int], shares: Float[Tensor, " records"]) -> None:
        """The gradient of a step: its size does not matter, so each part counts by its sum."""
        left = {"retain": 1 - shares, "both": 1 - 2 * shares}[self.forget]
        for sign in (1.0, -1.0):
            # A mean by weight, times the weights' sum.
            weigh = {k: sign * float(left[k]) for k in places if sign * float(left[k]) > TOLERANCE}
            there: list[tuple[Any, float]] = [(e, e.weight * w) for k, w in weigh.items() for e in pool[k]]
            part = [replace(e, weight=weight) for e, weight in there]
            if part:
                slopes.add(part, loss, sign * sum(e.weight for e in part))


def _project(values: Float[Tensor, " records"], total: float) -> Float[Tensor, " records"]:
    """The nearest numbers from 0 to 1 with the given sum: `values` less one number, cut off at 0 and 1."""
    low, high = values.min() - 1, values.max()
    for _ in range(100):
        middle = (low + high) / 2
        low, high = (middle, high) if (values - middle).clamp(0, 1).sum() > total else (low, middle)
    return (values - (low + high) / 2).clamp(0, 1)
