"""Fine-tuning: moves an adapter's weights down an objective, until the forgetting is enough.

Forgetting is enough when the forget set's loss has reached that of examples which no model has seen (the holdout
set), not when it is as high as it will go: a loss far above betrays the forgotten as surely as one far below.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import ClassVar, Literal, Self

import torch

from expunge.adapters.bounded import Bounded
from expunge.core.adapter import Adapted, Adapter
from expunge.core.method import WeightMethod
from expunge.core.model import Model, Network
from expunge.core.objective import Objective
from expunge.core.request import Request
from expunge.errors import UsageRefused
from expunge.events import Checked, Event, OnEvent, Step
from expunge.methods._loop import Loop
from expunge.methods.stop import Stop
from expunge.objectives.retain_kl import RetainKL
from expunge.objectives.retain_nll import RetainNLL
from expunge.objectives.settle import Settle
from expunge.primitives.rehearsal import Rehearsal
from expunge.train.activations import Activations, manage_activations
from expunge.train.checkpoint import checkpoints_of_run

Schedule = Literal["constant", "linear", "cosine"]


@dataclass(frozen=True)
class Finetune(WeightMethod):
    """Descent on an objective by AdamW, in an adapter's parameters, in float32."""

    objective: Objective = 0.5 * Settle() + RetainNLL() + 3.0 * RetainKL()
    """What is made small. The default forgets up to the holdout's level and holds on to the retain set by its answers
    and by what the model said before; docs/log.md tells how it was chosen. The paper's own is GradDiff()."""
    adapter: Adapter = Bounded()
    """Which numbers may move."""
    learning_rate: float = 3e-4
    """Step size of AdamW; each parameter moves by about this much in a step."""
    steps: int = 60
    """Steps at most; the run ends earlier when it has forgotten enough."""
    batch: int = 8
    """Forget examples that a step reads."""
    retain_batch: int = 16
    """Retain examples that a step reads: more of them steady what is held on to."""
    accumulate: int = 1
    """Parts that a step is read in. Changes memory, not the result."""
    warmup: int = 0
    """Steps over which the learning rate rises to its full value."""
    schedule: Schedule = "constant"
    """How the learning rate falls after the warm-up: constant, linear or cosine, to 0 one step after the last."""
    weight_decay: float = 0.0
    """Pull of the adapter's parameters to zero (decoupled, as in AdamW)."""
    clip: float | None = None
    """Largest norm of a step's gradient. None, since clipping hides whether the method itself is stable."""
    stop: Stop = Stop()
    """When forgetting is enough, and what it may cost."""
    seed: int = 0
    """Fixes the adapter's start and the order of the examples."""
    activations: Activations = "kept"
    """What a step keeps of each block for backward: kept is all; recomputed is its input alone, for a third more time.
    Changes memory, not the result."""
    norms: bool = True
    """Whether each step's line tells the size of the change; it costs one pass over the adapted weights."""

    resumable: ClassVar[bool] = True

    def __post_init__(self) -> None:
        wrong = [
            f"{name} must be {rule} (got {getattr(self, name)!r})"
            for name, rule, good in (
                ("learning_rate", "positive and finite", 0 < self.learning_rate < math.inf),
                ("steps", "at least 1", self.steps >= 1),
                ("batch", "at least 1", self.batch >= 1),
                ("retain_batch", "at least 1", self.retain_batch >= 1),
                ("accumulate", "from 1 to batch", 1 <= self.accumulate <= self.batch),
                ("warmup", "at least 0", self.warmup >= 0),
                ("schedule", "constant, linear or cosine", self.schedule in ("constant", "linear", "cosine")),
                ("weight_decay", "at least 0", self.weight_decay >= 0),
                ("activations", "kept or recomputed", self.activations in ("kept", "recomputed")),
                ("seed", "from 0 to 2**63 - 1", 0 <= self.seed < 2**63),
                ("clip", "None or positive", self.clip is None or self.clip > 0),
            )
            if not good
        ]
        if wrong:
            raise UsageRefused(f"Finetune: {'; '.join(wrong)}.")

    def change(self, network: Network, request: Request, on_event: OnEvent) -> Adapted:
        """The network after forgetting, with its adapter; `network` itself is left as it was."""
        devices = range(torch.cuda.device_count()) if torch.cuda.is_initialized() else ()
        with torch.random.fork_rng(devices=devices):
            torch.manual_seed(self.seed)
            loop = Loop(self, self.adapter(network, request), request, on_event, checkpoints_of_run())
            with manage_activations(loop.now.module, self.activations):
                return loop.train()

    @property
    def minimises(self) -> Objective:
        return self.objective

    def with_seed(self, seed: int) -> Finetune:
        return replace(self, seed=seed)

    @contextmanager
    def opened(self, network: Network, request: Request) -> Iterator[Network]:
        """The network as steps find it: with its adapter, and with blocks that keep their activations or do not."""
        adapted = self.adapter(network, request).inner
        with manage_activations(adapted.module, self.activations):
            yield adapted

    def rehearse(self, model: Model, request: Request, rehearsal: Rehearsal) -> Model:
        few = min(self.steps, rehearsal.most)
        rehearsal.opened, rehearsal.shared, rehearsal.steps = self.opened, True, self.steps
        asked, later = self._asked(request, self.steps), self._asked(request, few)

        def on_event(event: Event) -> None:
            if isinstance(event, Checked) and event.step == 0:
                rehearsal.times, rehearsal.before = self.steps / few, asked / later
            elif isinstance(event, Step):
                rehearsal.size += event.size * self.steps / few
                if event.step == few:  # the check after the last step stands for all but the first
                    rehearsal.times = math.ceil(self.steps / self.stop.every)

        # Nothing is to be learnt, and the run is not to end early: it looks at its losses twice.
        trial = replace(self, steps=few, learning_rate=1e-12, warmup=0, stop=replace(self.stop, every=few))
        try:
            return trial(model, request, on_event)
        finally:
            rehearsal.times = rehearsal.before = 1.0

    def _asked(self, request: Request, steps: int) -> int:
        """Examples that so many steps draw, each counted once: of those the model before is asked."""
        sets = ((request.forget, self.batch), (request.retain, self.retain_batch), (request.stand_in, self.batch))
        return sum(min(len(examples), steps * batch) for examples, batch in sets)

    def cheaper(self) -> Iterator[tuple[str, Self]]:
        if self.accumulate < self.batch:
            yield f"accumulate={self.batch}", replace(self, accumulate=self.batch)
        if self.activations == "kept":
            yield "activations='recomputed'", replace(self, activations="recomputed")
        for said, adapter in self.adapter.cheaper():
            yield said, replace(self, adapter=adapter)

    def rate(self, step: int) -> float:
        """Learning rate of a step, counted from 1."""
        if step <= self.warmup:
            return self.learning_rate * step / self.warmup
        done = (step - self.warmup - 1) / max(1, self.steps - self.warmup)
        falling = {"constant": 1.0, "linear": 1 - done, "cosine": (1 + math.cos(math.pi * done)) / 2}
        return self.learning_rate * falling[self.schedule]
