"""Selective synaptic dampening (Foster et al., 2024, arXiv 2308.07707): shrink parameters that matter to the forget set
most.

    I_S = mean over batches B of S of (d CE(B) / d theta) ** 2            importance of each parameter to a set S
    where I_forget > alpha * I_all:   theta <- theta * min(dampening * I_all / I_forget, 1)

No gradient descent and no step size: one pass over all training data (retain and forget set) and one over the forget
set. It is
for a class or a subclass; on randomly chosen examples both importances look alike, and it is close to a no-op. The
paper's alpha does not carry over: from the same network one class may need 25 and another 1, since well-fitted examples
have small gradients. Choose it on a validation part of the retain set, or see `ASSD` and `LFSSD`, which choose it
themselves.
Importances depend on the batch size, since the batch's mean gradient is squared.
"""

import math
from dataclasses import dataclass

from expunge.core.method import WeightMethod
from expunge.core.model import Model, Network
from expunge.core.request import Request
from expunge.edit._dampen import dampen, everything
from expunge.edit._fisher import mean_squared_gradient
from expunge.errors import UsageRefused
from expunge.events import OnEvent
from expunge.primitives.settings import check_finite


@dataclass(frozen=True)
class SSD(WeightMethod):
    """Dampening by squared gradients, with a fixed threshold."""

    alpha: float = 10.0
    """How many times more important to the forget set than to all data a parameter must be to be dampened. The paper:
    10
    (ResNet-18), 5 to 25 (ViT), 50 (faces)."""
    dampening: float = 1.0
    """The paper's lambda: a parameter is multiplied by this times its importance to all data over that to the forget
    set. Smaller forgets harder (0.1 for faces)."""
    batch: int = 64
    """Examples in the mean of one gradient. 1 gives the diagonal of the empirical Fisher matrix, and needs an
    alpha of its own."""

    def __post_init__(self) -> None:
        check_finite(self, "alpha")
        if not (self.alpha >= 0 and 0 <= self.dampening < math.inf and self.batch >= 1):
            raise UsageRefused(
                f"SSD: `alpha` and `dampening` must be at least 0 and `batch` at least 1. "
                f"Got {self.alpha!r}, {self.dampening!r}, {self.batch!r}."
            )

    def change(self, network: Network, request: Request, on_event: OnEvent) -> Model:
        whole = mean_squared_gradient(network, everything(request, "SSD"), self.batch)
        forget = mean_squared_gradient(network, request.forget, self.batch)
        return dampen(network, forget, whole, self.alpha, self.dampening, on_event)
