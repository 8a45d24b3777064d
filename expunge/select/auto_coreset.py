"""A weighted subset that stands for the whole pool (AutoCoreset, Maalouf et al., 2023, ICML, arXiv 2305.11980).

    sum over C of v_i M_i  ~  sum over the pool of M_i,   M_ij = cost of record i under the j-th fitted model

    1. fit three models on uniform samples: each gives a column of M
    2. summarise M to `size` records with weights, fit a model on them, append its column; again until no round helps
    3. the summary under whose model the whole pool costs least

Here a fitted model is one that forgets while it holds on to the summary, and the cost is a record's loss in nats: the
chosen records, weighted, must stand for what forgetting does to the pool. For a cost of your own (any function from
weighted records to the costs of all) call `search`, with no network at all.

It sees the cost of the whole pool in every round, so hold it against the best of as many uniform samples, not one.
Weights depend on every record of the pool: where one is to be forgotten, choose anew from the rest.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import islice
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
import torch

from expunge.core.model import Batch, Network
from expunge.errors import UsageRefused
from expunge.internals.examples import Pictured
from expunge.internals.gradients import Slopes, loss
from expunge.primitives.settings import check_least, check_seed
from expunge.primitives.shuffle import shuffle_forever
from expunge.select._coreset import Coreset, Costs, Search, Summary
from expunge.select._kinds import Pool, Selection, Selector, losses_by_record

if TYPE_CHECKING:
    from numpy.typing import NDArray


@dataclass(frozen=True)
class AutoCoreset(Selector):
    """A coreset of the pool for the loss of a model that forgets."""

    order: ClassVar[str] = "in the pool's order"

    size: int = 200
    """How many records are chosen. `caratheodory` may need fewer."""
    summary: Summary = "importance"
    """importance: drawn by chances that follow a record's costs; caratheodory: the columns' sums exactly; uniform."""
    models: int = 3
    """Models that are fitted on uniform samples at first."""
    patience: int = 5
    """Rounds without a lower cost after which the search ends. Each is a fit and a pass over the pool."""
    draws: int = 50
    """Samples that a round draws, of which the one whose sum is nearest is kept."""
    steps: int = 8
    """Steps of a fit: up the loss of the forget set and down that of the summary, by gradients of length 1."""
    reach: float = 0.05
    """How far the steps of a fit go together, as a share of the length of all weights."""
    batch: int = 16
    """Forget records in a step of a fit, and chosen ones; where there are fewer, a step reads them all."""
    seed: int = 0
    """Fixes the samples."""

    def __post_init__(self) -> None:
        check_least(self, size=1, models=1, patience=1, draws=1, steps=1, batch=1)
        check_seed(self)
        if not 0 < self.reach < math.inf:
            raise UsageRefused(f"The `reach` of AutoCoreset must be positive and finite. Got {self.reach!r}.")
        if self.summary not in ("importance", "caratheodory", "uniform"):
            raise UsageRefused(
                f"The `summary` of AutoCoreset must be importance, caratheodory or uniform. Got {self.summary!r}."
            )

    @property
    def reads_forget(self) -> bool:
        return True

    @property
    def quota(self) -> int:
        return self.size

    def search(self, costs: Costs, count: int, labels: NDArray[Any] | None = None) -> Coreset:
        """The coreset of `count` records for any cost; each class of `labels` has its share."""
        how = Search(self.size, self.summary, self.models, self.patience, self.draws)
        return how(costs, count, np.random.default_rng(self.seed), labels)

    def choose(self, network: Network, forget: Batch, pool: Pool) -> Selection:
        def costs(places: NDArray[np.int64], weights: NDArray[np.float64]) -> NDArray[np.float64]:
            held = [(pool[k], weight) for k, weight in zip(places.tolist(), weights.tolist(), strict=True)]
            return np.asarray(losses_by_record(self._forget(network, forget, held), pool).numpy())

        first = [record[0] for record in pool]
        labels = (
            np.array([e.label for e in first if isinstance(e, Pictured)]) if isinstance(first[0], Pictured) else None
        )
        found = self.search(costs, len(pool), labels)
        return Selection(tuple(found.places.tolist()), tuple(found.weights.tolist()))

    def _forget(self, network: Network, forget: Batch, held: Sequence[tuple[Batch, float]]) -> Network:
        """The network after a few steps up the loss of the forget set and down that of the weighted records."""
        now = network.fork(copy.deepcopy(network.module))
        slopes, weights = Slopes(now), dict(now.module.named_parameters())
        kept: Batch = [replace(e, weight=weight) for record, weight in held for e in record]  # type: ignore[type-var]
        generator = torch.Generator().manual_seed(self.seed)
        streams = [
            (sign, min(self.batch, len(own)), shuffle_forever(own, generator))
            for sign, own in ((-1.0, forget), (1.0, kept))
        ]
        length = math.hypot(*(float(p.detach().norm()) for p in weights.values()))
        for _ in range(self.steps):
            for sign, count, stream in streams:
                slopes.add(list(islice(stream, count)), loss, sign)
            gradient = dict(slopes.take())
            whole = math.hypot(*(float(slope.norm()) for slope in gradient.values())) or 1.0
            with torch.no_grad():
                for name, slope in gradient.items():
                    weights[name].sub_((self.reach * length / (self.steps * whole)) * slope.to(weights[name].dtype))
        return now
