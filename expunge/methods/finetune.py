"""Fine-tuning: trains an adapter on an objective, until the forget set's loss reaches a target.

The target is the loss of examples that no model was trained on (the holdout set), not the highest possible loss: a loss
far above it reveals the forgotten examples as surely as one far below.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import ClassVar, Literal, Self

import torch

from expunge.adapters.bounded import Bounded
from expunge.adapters.full import Full
from expunge.core.adapter import Adapted, Adapter
from expunge.core.method import WeightMethod
from expunge.core.model import Model, Network, network_of
from expunge.core.objective import Objective
from expunge.core.question import HiddenStates
from expunge.core.request import Request
from expunge.errors import UsageRefused
from expunge.events import Checked, Event, Note, OnEvent, Step, ignore_event
from expunge.internals.blocks import every_block
from expunge.methods._lengths import as_steps, count_steps, measure_steps
from expunge.methods._loop import Loop
from expunge.methods.epochs import Epochs
from expunge.methods.memorised import Memorised
from expunge.methods.stop import UNSTOPPED, Stop
from expunge.objectives.retain_kl import RetainKL
from expunge.objectives.retain_nll import RetainNLL
from expunge.objectives.settle import Settle
from expunge.primitives.rehearsal import Rehearsal
from expunge.prune._kinds import Pruner
from expunge.select._kinds import Selector
from expunge.train.activations import Activations, manage_activations
from expunge.train.checkpoint import checkpoints_of_run

Schedule = Literal["constant", "linear", "cosine"]
Optimizer = Literal["adamw", "sgd"]


@dataclass(frozen=True)
class Finetune(WeightMethod):
    """Descent on an objective, in an adapter's parameters, in float32."""

    objective: Objective = 0.5 * Settle() + RetainNLL() + 3.0 * RetainKL()
    """The loss. The default moves the forget set to the holdout's level and retains by the retain set's answers and by
    the
    original model's distributions; docs/log.md tells how it was chosen. The paper's own is GradDiff()."""
    adapter: Adapter | None = None
    """Which parameters are trained. None: those of `Bounded()`, or of `Full()` where the network has no transformer
    blocks, as a ResNet has none; the report names which."""
    learning_rate: float = 3e-4
    """Step size. By AdamW each parameter changes by about this much in a step."""
    full_scale: float = 1.0
    """By what the step size is multiplied where `adapter` is None and all weights are trained, because the network has
    no transformer blocks: they bear smaller steps than an adapter's."""
    steps: int | Epochs | Memorised = 60
    """Most steps; the run ends earlier once `stop` is met. `Epochs(count=5.0)`: so many passes through the forget
    set; `Memorised()`: the more, the better the set is known."""
    batch: int = 8
    """Forget examples in a step."""
    retain_batch: int = 16
    """Retain examples in a step; more of them make its gradient less noisy."""
    retain: Selector | None = None
    """Which records of the retain set training reads, such as `Nearest(count=200)`; None: all. Audits read all."""
    prune: Pruner | None = None
    """Which records of the retain set (of the forget set, where there is none) each pass through it reads, such as
    `SeTa()`; None: all. `steps` are then those of a run that reads all, and fewer are taken."""
    accumulate: int = 1
    """Micro-batches in a step (gradient accumulation). Changes memory, not the result."""
    warmup: int | Epochs = 0
    """Steps, or epochs, over which the learning rate rises to its full value."""
    schedule: Schedule = "constant"
    """How the learning rate falls after the warm-up: constant, linear or cosine, to 0 one step after the last."""
    optimizer: Optimizer = "adamw"
    """adamw, or sgd with momentum 0.9: its steps follow the size of the gradient, so it needs a larger rate."""
    weight_decay: float = 0.0
    """Weight decay of the trainable parameters, decoupled from the gradient by AdamW."""
    clip: float | None = None
    """Largest norm of a step's gradient. None, since clipping hides whether the method itself is stable."""
    stop: Stop | None = Stop()
    """When to stop, and by how much the retain loss may rise. None: every step is taken and the last one kept, as a
    published schedule has it; losses are looked at before the first step and after the last."""
    seed: int = 0
    """Fixes the adapter's start and the order of the examples."""
    activations: Activations = "kept"
    """Which activations a step saves for backward: kept is all; recomputed is each block's input alone (gradient
    checkpointing), for a third more time. Changes memory, not the result."""
    norms: bool = True
    """Whether each step reports the norms of the update; it costs one pass over the adapted weights."""

    resumable: ClassVar[bool] = True

    def __post_init__(self) -> None:
        wrong = [
            f"{name} must be {rule} (got {getattr(self, name)!r})"
            for name, rule, good in (
                ("learning_rate", "positive and finite", 0 < self.learning_rate < math.inf),
                ("full_scale", "positive and finite", 0 < self.full_scale < math.inf),
                ("steps", "at least 1", not isinstance(self.steps, int) or self.steps >= 1),
                ("batch", "at least 1", self.batch >= 1),
                ("retain_batch", "at least 1", self.retain_batch >= 1),
                ("accumulate", "from 1 to batch", 1 <= self.accumulate <= self.batch),
                ("warmup", "at least 0", not isinstance(self.warmup, int) or self.warmup >= 0),
                ("optimizer", "adamw or sgd", self.optimizer in ("adamw", "sgd")),
                ("schedule", "constant, linear or cosine", self.schedule in ("constant", "linear", "cosine")),
                ("weight_decay", "at least 0 and finite", 0 <= self.weight_decay < math.inf),
                ("activations", "kept or recomputed", self.activations in ("kept", "recomputed")),
                ("seed", "from 0 to 2**63 - 1", 0 <= self.seed < 2**63),
                ("clip", "None or positive and finite", self.clip is None or 0 < self.clip < math.inf),
            )
            if not good
        ]
        if wrong:
            raise UsageRefused(f"Finetune: {'; '.join(wrong)}.")

    def fit(self, model: Model, request: Request, on_event: OnEvent = ignore_event) -> Finetune:
        """With its adapter, and epochs as steps. Asks for one hidden state, where the objective steers them."""
        network = network_of(model.plain(), self.name)
        if any("hidden" in term.needs for _, term in self.objective.terms()) and network.device.type != "meta":
            with torch.no_grad():
                network.ask(HiddenStates(0), request.forget[:1])
        return self._settle(network, request, on_event)

    def _settle(self, network: Network, request: Request, on_event: OnEvent) -> Finetune:
        batches = self.batch, self.retain_batch
        adapter, rate = self._choose_adapter(network, on_event)
        return replace(
            self,
            adapter=adapter,
            learning_rate=rate,
            full_scale=1.0,
            steps=measure_steps(self.steps, network, request, batches, on_event),
            warmup=count_steps(self.warmup, request, batches, "steps of warm-up", on_event),
        )

    def _choose_adapter(self, network: Network, on_event: OnEvent) -> tuple[Adapter, float]:
        """The adapter, and the learning rate that is for it."""
        chosen = self.adapter or (Bounded() if every_block(network.module) else Full())
        chosen.check(network)
        if self.adapter is not None or chosen != Full():
            return chosen, self.learning_rate
        rate, kind = self.full_scale * self.learning_rate, type(network.module).__name__
        lower = f", at a rate of {rate:g}" if rate != self.learning_rate else ""
        on_event(
            Note(f"{kind} has no transformer blocks: all weights are trained (adapter=Full()), without bound{lower}")
        )
        return chosen, rate

    def change(self, network: Network, request: Request, on_event: OnEvent) -> Adapted:
        """The trained network with its adapter; `network` itself is not changed."""
        request = request if self.retain is None else self.retain.narrow(network, request, on_event)
        plan = self._settle(network, request, on_event)
        assert plan.adapter is not None
        devices = range(torch.cuda.device_count()) if torch.cuda.is_initialized() else ()
        with torch.random.fork_rng(devices=devices):
            torch.manual_seed(self.seed)
            loop = Loop(plan, plan.adapter(network, request), request, on_event, checkpoints_of_run())
            with manage_activations(loop.now.module, self.activations):
                return loop.train()

    @property
    def minimises(self) -> Objective:
        return self.objective

    def with_seed(self, seed: int) -> Finetune:
        return replace(self, seed=seed)

    @contextmanager
    def open_for_steps(self, network: Network, request: Request) -> Iterator[Network]:
        """The network as steps find it: with its adapter, and with blocks that keep their activations or do not."""
        adapter, _ = self._choose_adapter(network, ignore_event)
        adapted = adapter(network, request).inner
        with manage_activations(adapted.module, self.activations):
            yield adapted

    def rehearse(self, model: Model, request: Request, rehearsal: Rehearsal) -> Model:
        steps = as_steps(self._settle(network_of(model.plain(), self.name), request, ignore_event).steps)
        few = min(steps, rehearsal.most)
        rehearsal.opened, rehearsal.shared, rehearsal.steps = self.open_for_steps, True, steps
        asked, later = self._distinct_examples(request, steps), self._distinct_examples(request, few)

        def on_event(event: Event) -> None:
            if isinstance(event, Checked) and event.step == 0:
                rehearsal.times, rehearsal.before = steps / few, asked / later
            elif isinstance(event, Step):
                rehearsal.size += event.size * steps / few
                if event.step == few:  # the check after the last step stands for all but the first
                    rehearsal.times = math.ceil(steps / self.checks.every)

        # Nothing is to be learnt, and the run is not to end early: it looks at its losses twice.
        trial = replace(
            self, steps=few, prune=None, learning_rate=1e-12, warmup=0, stop=replace(self.checks, every=few)
        )
        try:
            return trial(model, request, on_event)
        finally:
            rehearsal.times = rehearsal.before = 1.0

    def _distinct_examples(self, request: Request, steps: int) -> int:
        """Examples that so many steps draw, each counted once: of those the model before is asked."""
        sets = ((request.forget, self.batch), (request.retain, self.retain_batch), (request.stand_in, self.batch))
        return sum(min(len(examples), steps * batch) for examples, batch in sets)

    def cheaper(self) -> Iterator[tuple[str, Self]]:
        if self.accumulate < self.batch:
            yield f"accumulate={self.batch}", replace(self, accumulate=self.batch)
        if self.activations == "kept":
            yield "activations='recomputed'", replace(self, activations="recomputed")
        for said, adapter in self.adapter.cheaper() if self.adapter else ():
            yield said, replace(self, adapter=adapter)

    @property
    def checks(self) -> Stop:
        """What is looked at between steps."""
        return self.stop or UNSTOPPED

    def rate(self, step: float) -> float:
        """Learning rate of a step, counted from 1, of a method that was fitted to its request.

        With a pruner, of the step at which a run that reads everything is as far.
        """
        steps, warmup = as_steps(self.steps), as_steps(self.warmup)
        if step <= warmup:
            return self.learning_rate * step / warmup
        done = (step - warmup - 1) / max(1, steps - warmup)
        falling = {"constant": 1.0, "linear": 1 - done, "cosine": (1 + math.cos(math.pi * done)) / 2}
        return self.learning_rate * falling[self.schedule]
