"""Selective synaptic dampening (Foster et al., 2024, arXiv 2308.07707): shrink parameters that matter to the forget set
most.

    I_S = mean over batches B of S of (d CE(B) / d theta) ** 2            importance of each parameter to a set S
    where I_forget > alpha * I_all:   theta <- theta * min(dampening * I_all / I_forget, 1)

No gradient descent and no step size: one pass over all training data (retain and forget set) and one over the forget
set. It is for a class or a subclass; on randomly chosen examples both importances look alike, and it is close to a
no-op.

The paper's alpha does not carry over, since well-fitted examples have small gradients: on a CIFAR-10 ResNet-20 its 10
leaves one class known and ruins the network over another. So without an alpha it is picked on
the retain set: the smallest of 1, 2, 5, 10, ... 1000 with which the retain loss rises by `max_retain_increase` at most.
Both importances are computed once; the report names the alpha, and by how much each that was tried raised the loss.
`SSD(alpha=10.0)` is the paper's. `ASSD` and `LFSSD` set a threshold without reading the loss.
Importances depend on the batch size, since the batch's mean gradient is squared.
"""

import math
from dataclasses import dataclass, replace

from expunge.core.method import WeightMethod
from expunge.core.model import Batch, Model, Network, network_of
from expunge.core.request import Request
from expunge.edit._dampen import dampen, everything, mean_loss
from expunge.edit._fisher import mean_squared_gradient
from expunge.errors import UsageRefused
from expunge.events import Edited, Event, Note, OnEvent, ignore_event
from expunge.internals.gradients import Gradient
from expunge.notation.recipes import Recipe
from expunge.primitives.rehearsal import Rehearsal
from expunge.primitives.settings import check_finite

PUBLISHED = Recipe(
    "SSD",
    "vision",
    "SSD(alpha=None, dampening=1.0, batch=64, max_retain_increase=0.05)",
    "Foster et al., 2024: dampening 1, batches of 64. Their alpha (10 on ResNet-18, 5 to 25 on ViT) "
    "ruins other networks, so it is picked on the retain set; SSD(alpha=10.0) is theirs.",
)

LADDER = (1.0, 2.0, 5.0, 10.0, 20.0, 50.0, 100.0, 200.0, 500.0, 1000.0)
"""Thresholds that are tried, from the one that forgets most."""
READ = 512
"""Most retain examples that a threshold is tried on, evenly spaced."""


@dataclass(frozen=True)
class SSD(WeightMethod):
    """Dampening by squared gradients, with a threshold that is given or picked on the retain set."""

    alpha: float | None = None
    """How many times more important to the forget set than to all data a parameter must be to be dampened; None picks
    it. The paper: 10 (ResNet-18), 5 to 25 (ViT), 50 (faces)."""
    dampening: float = 1.0
    """The paper's lambda: a parameter is multiplied by this times its importance to all data over that to the forget
    set. Smaller forgets harder (0.1 for faces)."""
    batch: int = 64
    """Examples in the mean of one gradient. 1 gives the diagonal of the empirical Fisher matrix, and needs an
    alpha of its own."""
    max_retain_increase: float = 0.05
    """By how many nats the retain loss may rise, where alpha is picked."""

    def __post_init__(self) -> None:
        check_finite(self, "alpha", "max_retain_increase")
        small = [name for name in ("alpha", "max_retain_increase") if (getattr(self, name) or 0) < 0]
        if small or not (0 <= self.dampening < math.inf and self.batch >= 1):
            raise UsageRefused(
                f"SSD: `alpha`, `dampening` and `max_retain_increase` must be at least 0 and `batch` at least 1. "
                f"Got {self.alpha!r}, {self.dampening!r}, {self.max_retain_increase!r}, {self.batch!r}."
            )

    def change(self, network: Network, request: Request, on_event: OnEvent) -> Model:
        return self._dampen(network, request, self.max_retain_increase, on_event)

    def rehearse(self, model: Model, request: Request, rehearsal: Rehearsal) -> Model:
        # How far it climbs depends on the data: a plan counts the whole ladder.
        return self._dampen(network_of(model.plain(), self.name), request, -math.inf, ignore_event)

    def _dampen(self, network: Network, request: Request, allowed: float, on_event: OnEvent) -> Model:
        whole = mean_squared_gradient(network, everything(request, "SSD"), self.batch)
        forget = mean_squared_gradient(network, request.forget, self.batch)
        alpha, rises = self.alpha, dict[str, float]()
        if alpha is None:
            alpha, rises = self._climb(network, request.retain, (forget, whole), allowed, on_event)

        def say(event: Event) -> None:
            on_event(replace(event, losses=rises) if isinstance(event, Edited) else event)

        return dampen(network, forget, whole, alpha, self.dampening, say)

    def _climb(
        self, network: Network, retain: Batch, importances: tuple[Gradient, Gradient], allowed: float, on_event: OnEvent
    ) -> tuple[float, dict[str, float]]:
        """The first threshold that is allowed, or the last; and the rise of the retain loss at each that was tried."""
        some = retain[:: math.ceil(len(retain) / READ)]
        was, rises = mean_loss(network, some), dict[str, float]()
        alpha = rise = math.inf
        for alpha in LADDER:
            rise = mean_loss(dampen(network, *importances, alpha, self.dampening, ignore_event), some) - was
            rises[f"retain increase at alpha {alpha:g}"] = rise
            if rise <= allowed:
                break
        kind = "the smallest that is allowed" if rise <= allowed else "the largest tried, though it harms"
        on_event(Note(f"SSD picked alpha {alpha:g} on {len(some)} retain examples: {kind} ({rise:+.3f} nats)"))
        return alpha, rises
