"""Training: the cross-entropy of the records' answers falls, for so many epochs; the last step is the result.

    loss = CE(y | x),   mean over labelled rows, in nats

The records are those that a request has as its forget set, the one that every request has: what is learnt now can be
forgotten later. `expunge train` makes that request of files. The defaults are how TOFU's models learnt its authors
(Maini et al., 2024, arXiv 2401.06121), who had `warmup=1.0` too: all weights, AdamW at 1e-5, batches of 32, 5 epochs.
A LoRA needs a learning rate some ten times as large.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import ClassVar, Self

from expunge.adapters.full import Full
from expunge.core.adapter import Adapted, Adapter
from expunge.core.method import WeightMethod
from expunge.core.model import Model, Network, network_of
from expunge.core.objective import Objective
from expunge.core.request import Request
from expunge.errors import UsageRefused
from expunge.events import OnEvent, ignore_event
from expunge.methods.epochs import Epochs
from expunge.methods.finetune import Finetune, Optimizer, Schedule
from expunge.objectives.ascent import Ascent
from expunge.primitives.rehearsal import Rehearsal
from expunge.prune._kinds import Pruner
from expunge.train.activations import Activations


@dataclass(frozen=True)
class Train(WeightMethod):
    """Descent on the records' cross-entropy. Every step is taken; nothing is judged."""

    adapter: Adapter = Full()
    """Which parameters are trained: `Full()`, `LoRA(rank=16)`, `Bounded()`, ..."""
    learning_rate: float = 1e-5
    """Step size. By AdamW each parameter changes by about this much in a step."""
    epochs: float = 5.0
    """How often each record is read; need not be whole."""
    batch: int = 32
    """Records in a step."""
    prune: Pruner | None = None
    """Which records each pass reads, such as `SeTa()`; None: all. Fewer steps are taken."""
    accumulate: int = 1
    """Micro-batches in a step (gradient accumulation). Changes memory, not the result."""
    warmup: float = 0.0
    """Epochs over which the learning rate rises to its full value."""
    schedule: Schedule = "linear"
    """How the learning rate falls after the warm-up: constant, linear or cosine, to 0 one step after the last."""
    optimizer: Optimizer = "adamw"
    """adamw, or sgd with momentum 0.9."""
    weight_decay: float = 0.01
    """Weight decay of the trainable parameters."""
    clip: float | None = None
    """Largest norm of a step's gradient."""
    seed: int = 0
    """Fixes the adapter's start and the order of the records."""
    activations: Activations = "kept"
    """kept, or recomputed (gradient checkpointing): less memory for a third more time."""

    resumable: ClassVar[bool] = True

    def __post_init__(self) -> None:
        if not 0 <= self.warmup < math.inf:
            raise UsageRefused(f"Train: the `warmup` must be at least 0 and finite. Got {self.warmup!r}.")
        try:
            self.steps()
        except UsageRefused as error:
            said = str(error).removeprefix("Finetune: ").replace("The `count` of Epochs", "the `epochs`")
            raise UsageRefused(f"Train: {said}") from error

    def steps(self) -> Finetune:
        """The same as fine-tuning, whose loop takes the steps."""
        return Finetune(
            objective=-1.0 * Ascent(),
            adapter=self.adapter,
            learning_rate=self.learning_rate,
            steps=Epochs(self.epochs),
            batch=self.batch,
            prune=self.prune,
            accumulate=self.accumulate,
            warmup=Epochs(self.warmup) if self.warmup else 0,
            schedule=self.schedule,
            optimizer=self.optimizer,
            weight_decay=self.weight_decay,
            clip=self.clip,
            stop=None,
            seed=self.seed,
            activations=self.activations,
            norms=False,
        )

    @property
    def minimises(self) -> Objective:
        return self.steps().minimises

    def with_seed(self, seed: int) -> Self:
        return replace(self, seed=seed)

    def cheaper(self) -> Iterator[tuple[str, Self]]:
        if self.accumulate < self.batch:
            yield f"accumulate={self.batch}", replace(self, accumulate=self.batch)
        if self.activations == "kept":
            yield "activations='recomputed'", replace(self, activations="recomputed")

    def rehearse(self, model: Model, request: Request, rehearsal: Rehearsal) -> Model:
        return self.steps().rehearse(model, Request(request.forget), rehearsal)

    def fit(self, model: Model, request: Request, on_event: OnEvent = ignore_event) -> Self:
        self.plan(network_of(model.plain(), self.name), request)
        return self

    def plan(self, network: Network, request: Request) -> Finetune:
        """The steps for these records, of which nothing is left open."""
        return self.steps().fit(network, Request(request.forget))

    def change(self, network: Network, request: Request, on_event: OnEvent) -> Adapted:
        """The trained network with its adapter; `network` itself is not changed."""
        return self.plan(network, request).change(network, Request(request.forget), on_event)
