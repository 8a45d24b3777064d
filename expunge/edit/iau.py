"""Influence approximation unlearning (arXiv 2507.23257): one gradient step instead of an inverse Hessian.

    g = correction * grad CE(retain) - grad CE(forget),    CE = mean over the rows of the whole set
    adam:  theta <- theta - learning_rate * g / (|g| + 1e-8)        sgd:  theta <- theta - learning_rate * g

To remove an example is to learn one whose gradient is the opposite, so a plain gradient step stands in for the
influence function. The paper takes the first step of Adam, which changes every parameter by the learning
rate whatever its gradient: the strength depends on the learning rate and not on influence, and only the signs carry
information. `sgd` keeps the magnitudes and needs a learning rate of its own. The paper also trains the original model
with a penalty on its gradients: see `GradientNorm`.
"""

import math
from dataclasses import dataclass
from typing import Literal

import torch

from expunge.core.method import WeightMethod
from expunge.core.model import Model, Network
from expunge.core.request import Request
from expunge.edit._fisher import copy_network
from expunge.errors import DataRefused, UsageRefused
from expunge.events import OnEvent
from expunge.internals.changes import describe_change
from expunge.internals.gradients import gradient, loss
from expunge.notation.recipes import Recipe

PUBLISHED = Recipe(
    "IAU",
    "vision",
    "IAU(learning_rate=0.001, step='adam', correction=1.0)",
    "The authors' code: one step of Adam at 1e-3, both gradients with weight 1. The original is not "
    "trained with its gradient restriction.",
)


@dataclass(frozen=True)
class IAU(WeightMethod):
    """One step up the forget set's loss and down the retain set's."""

    learning_rate: float = 1e-3
    """Change of each parameter (adam), or the factor of its gradient (sgd)."""
    step: Literal["adam", "sgd"] = "adam"
    """adam: the same step size for every parameter, with the sign of its gradient; sgd: proportional to the
    gradient."""
    correction: float = 1.0
    """Weight of the retain set's gradient; 0 drops it, which harms the retained."""

    def __post_init__(self) -> None:
        if not (0 <= self.learning_rate < math.inf and 0 <= self.correction < math.inf):
            raise UsageRefused(
                f"IAU: `learning_rate` and `correction` must be at least 0 and finite. "
                f"Got {self.learning_rate!r}, {self.correction!r}."
            )
        if self.step not in ("adam", "sgd"):
            raise UsageRefused(f"The `step` of IAU must be adam or sgd. Got {self.step!r}.")

    def change(self, network: Network, request: Request, on_event: OnEvent) -> Model:
        if self.correction and not request.retain:
            raise DataRefused("IAU corrects its step by the retain set, and the request has none. Give --retain.")
        sets = [(self.correction, request.retain)] if self.correction else []
        slope = gradient(network, loss, *sets, (-1.0, request.forget))
        result = copy_network(network)
        with torch.no_grad():
            for name, parameter in result.module.named_parameters():
                if name in slope:
                    g = slope.pop(name)
                    move = g / (g.abs() + 1e-8) if self.step == "adam" else g
                    parameter.sub_((self.learning_rate * move).to(parameter.dtype))
        on_event(describe_change(network, result))
        return result
