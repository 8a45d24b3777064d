"""The training records that speak for a fact (TRAK, Park et al., 2023, ICML, arXiv 2303.14186), by one model.

    g(z)          = gradient of z's log-odds, log(p / (1 - p)), a mean over its rows, at the present weights
    phi(z)        = each matrix's part of g(z) as P g Q: `side` x `side` numbers, P and Q random (LoGra, Choe et al.,
                    2024, arXiv 2405.13954)
    trak(f, r)    = phi(f)^T (Phi^T Phi / n + damping)^-1 phi(r) (1 - p(r)),   Phi: the phi of the pool
    cosine(f, r)  = cosine of phi(f) and phi(r)

First comes the record that speaks most for each forget record, then the second of each, and so on. As a retain set
these are what the forgotten facts lean on; of a training file they are candidates for the forget set. The paper takes a
mean of trak over several models trained anew; here it is one, so the values are coarser. Each record costs a pass
forwards and backwards.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar, Literal

import torch

from expunge.core.model import Batch, Network
from expunge.core.question import LogProbabilities
from expunge.errors import UsageRefused
from expunge.internals.sketches import Sketcher, damp
from expunge.primitives.settings import check_least, check_seed
from expunge.select._kinds import AT_ONCE, LikenessSelector, Pool, cosines, flatten, mean_by_record

if TYPE_CHECKING:
    from jaxtyping import Float
    from torch import Tensor

Score = Literal["trak", "cosine"]


@dataclass(frozen=True)
class Influential(LikenessSelector):
    """The records whose gradients support the answers of the forget set."""

    order: ClassVar[str] = "the record that speaks most for each forget record, then the second of each, and so on"

    count: int = 200
    """How many records are chosen."""
    score: Score = "trak"
    """trak, which takes out what all records share; or cosine, which compares the gradients as they are."""
    side: int = 8
    """Each matrix's gradient becomes side x side numbers; more tell records apart better and take more memory."""
    damping: float = 0.1
    """Added to the diagonal of the second moments, as a share of its mean: more makes trak more like cosine."""
    seed: int = 0
    """Fixes the projections."""

    def __post_init__(self) -> None:
        check_least(self, count=1, side=1)
        check_seed(self)
        if not 0 < self.damping < float("inf"):
            raise UsageRefused(f"The `damping` of Influential must be positive and finite. Got {self.damping!r}.")
        if self.score not in ("trak", "cosine"):
            raise UsageRefused(f"The `score` of Influential must be trak or cosine. Got {self.score!r}.")

    def likeness(self, network: Network, forget: Batch, pool: Pool) -> Iterator[Float[Tensor, "forget records"]]:
        every, sketcher = flatten(pool), Sketcher(network, self.side, self.seed)
        sketches = mean_by_record(sketcher.sketch(every), pool)
        asked = sketcher.sketch(forget)
        if self.score == "cosine":
            return cosines(asked, sketches)
        said = network.ask(LogProbabilities(), every)
        doubt = mean_by_record(1 - said.mean(said.log_probs.double().exp()), pool)
        return self._trak(asked, sketches, doubt)

    def _trak(
        self, asked: Float[Tensor, "forget k"], sketches: Float[Tensor, "records k"], doubt: Float[Tensor, " records"]
    ) -> Iterator[Float[Tensor, "some records"]]:
        moments = damp(sketches.T @ sketches / len(sketches), self.damping)
        pulled = torch.linalg.solve(moments, sketches.T) * doubt
        for some in asked.split(AT_ONCE):
            yield some @ pulled
