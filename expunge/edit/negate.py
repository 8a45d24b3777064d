"""Forgetting by negating a task vector (Ilharco et al., 2023, arXiv 2212.04089): away from a copy that has memorised
it.

    theta <- theta - scale * (theta_over - theta),   theta_over = theta after more training on the forget set

`learn` makes theta_over: any fine-tuning that lowers the forget set's loss. Its default is that of MUSE (all weights,
AdamW at 1e-5, batches of 32; MUSE goes over the forget set ten times), which hardly moves a small model: there raise
its learning rate. There is no retain term, so choose `scale` on examples that should be retained (MUSE: 5 on News).
"""

import math
from dataclasses import dataclass

import torch

from expunge.core.method import Method, WeightMethod
from expunge.core.model import Model, Network, network_of
from expunge.core.request import Request
from expunge.errors import UsageRefused
from expunge.events import Note, OnEvent
from expunge.internals.changes import describe_change
from expunge.notation.parse import parse
from expunge.notation.recipes import ALL_STEPS, Recipe

PUBLISHED = Recipe(
    "TaskVector",
    "language",
    "Negate(scale=5.0, learn=Finetune(objective=-1.0 * Ascent(), adapter=Full(), "
    f"learning_rate=1e-05, steps=Epochs(count=10.0), batch=32, retain_batch=1, {ALL_STEPS}, "
    "norms=False))",
    "MUSE (Shi et al., 2024) on News: 10 epochs in batches of 32 at 1e-5; scale 5, which they chose on validation.",
)


@dataclass(frozen=True)
class Negate(WeightMethod):
    """One step from the network, opposite to the direction of more training on the forget set."""

    scale: float = 1.0
    """Factor of the task vector. 0 changes nothing."""
    # In the notation: edits do not import the training code.
    learn: Method = parse(
        "Finetune(objective=-1.0 * Ascent(), adapter=Full(), learning_rate=1e-5, batch=32, retain_batch=1, "
        "stop=Stop(level=None, max_retain_increase=None, every=1000), norms=False)"
    )
    """Trains the copy that has memorised the forget set. `-1.0 * Ascent()` is the forget set's loss."""

    def __post_init__(self) -> None:
        if not math.isfinite(self.scale):
            raise UsageRefused(f"The `scale` of Negate must be finite. Got {self.scale!r}.")

    def change(self, network: Network, request: Request, on_event: OnEvent) -> Model:
        on_event(Note("Memorising the forget set"))
        result = network_of(self.learn(network, request).plain(), self.name)
        weights = dict(network.module.named_parameters())
        with torch.no_grad():
            for name, over in result.module.named_parameters():
                was = weights[name]
                vector = over - was.to(over.dtype)
                over.data = (was.to(over.dtype) - self.scale * vector).to(was.dtype)
        on_event(describe_change(network, result))
        return result
