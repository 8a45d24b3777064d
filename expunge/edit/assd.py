"""Adaptive selective synaptic dampening (Schoepf et al., 2024, arXiv 2402.10098): SSD with an automatic threshold.

    alpha = the P-th percentile of I_forget / I_all over the parameters,  P = 100 - ln(1 + 100 |forget| / |all|)
    theta <- theta * min(I_all / I_forget, 1)   where I_forget > alpha * I_all

The importances are those of `SSD`, and the forget set's size determines how many parameters are dampened. On a class
that the
network has learnt very well, squared gradients are so small that the threshold can fall below 1, and little is
forgotten: then see `LFSSD`. On a small vision transformer ASSD is the better of the two.
"""

from dataclasses import dataclass

from expunge.core.method import WeightMethod
from expunge.core.model import Model, Network
from expunge.core.request import Request
from expunge.edit._dampen import adaptive_alpha, dampen, everything
from expunge.edit._fisher import mean_squared_gradient
from expunge.errors import UsageRefused
from expunge.events import OnEvent
from expunge.notation.recipes import Recipe

PUBLISHED = Recipe(
    "ASSD",
    "vision",
    "ASSD(batch=64)",
    "Schoepf et al., 2024: batches of 64; it has no other setting.",
)


@dataclass(frozen=True)
class ASSD(WeightMethod):
    """Dampening by squared gradients, with a threshold from the forget set's share of the data."""

    batch: int = 64
    """Examples in the mean of one gradient."""

    def __post_init__(self) -> None:
        if self.batch < 1:
            raise UsageRefused(f"The `batch` of ASSD must be at least 1. Got {self.batch!r}.")

    def change(self, network: Network, request: Request, on_event: OnEvent) -> Model:
        whole = mean_squared_gradient(network, everything(request, "ASSD"), self.batch)
        forget = mean_squared_gradient(network, request.forget, self.batch)
        return dampen(network, forget, whole, adaptive_alpha(forget, whole, request), 1.0, on_event)
