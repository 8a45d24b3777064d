"""Loss-free selective synaptic dampening (Foster et al., 2024, arXiv 2402.19308): SSD without labels.

    I_S = mean over batches B of S of | d/d theta  mean_{x in B} || f_theta(x) ||^2 |,   f = the class scores
    where I_forget > alpha * I_all:   theta <- theta * min(dampening * I_all / I_forget, 1)

The norm of the scores still has a gradient where the loss has none, so a class that was learnt well can be forgotten
too. Without an alpha the threshold is that of `ASSD`, a percentile set by the forget set's share of the
data, which needs no search. On a small convolutional network it works for most classes, with hardly any harm, and for
some it forgets
hardly anything (docs/results.md): check the forget accuracy. On a small vision transformer, whose
last LayerNorm fixes the scores' norm, it forgot little where `ASSD` forgot the class. For a text the rows are
those of its answer, but the answer's tokens are not read as labels.
"""

import math
from dataclasses import dataclass

from expunge.core.method import WeightMethod
from expunge.core.model import Model, Network
from expunge.core.request import Request
from expunge.edit._dampen import adaptive_alpha, dampen, everything
from expunge.edit._fisher import mean_absolute_gradient
from expunge.errors import UsageRefused
from expunge.events import OnEvent
from expunge.notation.recipes import Recipe
from expunge.primitives.settings import check_finite

PUBLISHED = Recipe(
    "LFSSD",
    "vision",
    "LFSSD(alpha=None, dampening=1.0, batch=64)",
    "Foster et al., 2024: dampening 1, batches of 64, the threshold by ASSD's percentile.",
)


@dataclass(frozen=True)
class LFSSD(WeightMethod):
    """Dampening by the gradient of the scores' norm."""

    alpha: float | None = None
    """How many times more important to the forget set than to all data a parameter must be to be dampened; None takes
    the percentile of ASSD."""
    dampening: float = 1.0
    """The paper's lambda: smaller forgets harder."""
    batch: int = 64
    """Examples in the mean of one gradient."""

    def __post_init__(self) -> None:
        check_finite(self, "alpha")
        if not ((self.alpha is None or self.alpha >= 0) and 0 <= self.dampening < math.inf and self.batch >= 1):
            raise UsageRefused(
                f"LFSSD: `alpha` must be None or at least 0, `dampening` at least 0 and `batch` at least 1. "
                f"Got {self.alpha!r}, {self.dampening!r}, {self.batch!r}."
            )

    def change(self, network: Network, request: Request, on_event: OnEvent) -> Model:
        whole = mean_absolute_gradient(network, everything(request, "LFSSD"), self.batch)
        forget = mean_absolute_gradient(network, request.forget, self.batch)
        alpha = adaptive_alpha(forget, whole, request) if self.alpha is None else self.alpha
        return dampen(network, forget, whole, alpha, self.dampening, on_event)
