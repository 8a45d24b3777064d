"""The only training loop: moves an adapter's weights down an objective, until the forgetting is enough.

Forgetting is enough when the forget set's loss has reached that of examples which no model has seen (the holdout
set), not when it is as high as it will go: a loss far above betrays the forgotten as surely as one far below.
"""

from __future__ import annotations

import math
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn

from expunge.adapters.bounded import Bounded
from expunge.adapters.layers import Kind, kind_of, kinds
from expunge.core.adapter import Adapter
from expunge.core.errors import RunFailed, UsageRefused
from expunge.core.model import Batch, Network, View, Watch
from expunge.core.objective import Objective
from expunge.core.predictions import Share
from expunge.core.request import Request
from expunge.objectives.retain_kl import RetainKL
from expunge.objectives.retain_nll import RetainNLL
from expunge.objectives.settle import Settle
from expunge.train.draw import Draw
from expunge.train.norms import Norms
from expunge.train.stop import Stop

Schedule = Literal["constant", "linear", "cosine"]


def _unwatched(event: dict[str, object]) -> None:
    """Nobody looks."""


@dataclass(frozen=True)
class Finetune:
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
    norms: bool = True
    """Whether each step's line tells the size of the change; it costs one pass over the adapted weights."""

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
                ("seed", "from 0 to 2**63 - 1", 0 <= self.seed < 2**63),
                ("clip", "None or positive", self.clip is None or self.clip > 0),
            )
            if not good
        ]
        if wrong:
            raise UsageRefused(f"Finetune: {'; '.join(wrong)}.")

    def __call__(self, network: Network, request: Request, watch: Watch = _unwatched) -> Network:
        """The network after forgetting, with its adapter; `network` itself is left as it was."""
        devices = range(torch.cuda.device_count()) if torch.cuda.is_initialized() else ()
        with torch.random.fork_rng(devices=devices):
            torch.manual_seed(self.seed)
            adapted = self.adapter(network, request)
            return _Run(self, network, adapted, request, watch).train()

    def rate(self, step: int) -> float:
        """Learning rate of a step, counted from 1."""
        if step <= self.warmup:
            return self.learning_rate * step / self.warmup
        done = (step - self.warmup - 1) / max(1, self.steps - self.warmup)
        falling = {"constant": 1.0, "linear": 1 - done, "cosine": (1 + math.cos(math.pi * done)) / 2}
        return self.learning_rate * falling[self.schedule]


@dataclass
class _Run:
    plan: Finetune
    before: Network
    adapted: Network
    request: Request
    watch: Watch

    def __post_init__(self) -> None:
        self.moving = self.adapted.trainable()
        self.kinds: dict[str, Kind] = kinds(self.before.module)
        self.norms = Norms()
        self.level: float | None = None
        self.reads: dict[str, tuple[str, ...]] = {"now": (), "before": ()}
        self.optimizer = torch.optim.AdamW(
            self.moving.values(), lr=self.plan.learning_rate, weight_decay=self.plan.weight_decay
        )

    def train(self) -> Network:
        plan = self.plan
        draw = Draw(self.request, plan.batch, plan.retain_batch, plan.seed)
        keeper = plan.stop.keeper(self.before, self.request)
        self.level = keeper.level
        layers = [name for name, _ in self.changes()]
        self.watch(
            {
                "kind": "start",
                "layers": len(layers),
                "trainable": sum(p.numel() for p in self.moving.values()),
                "parameters": sum(p.numel() for p in self.before.module.parameters()),
                "steps": plan.steps,
                **keeper.facts(),
            }
        )
        keeper.check(0, self.adapted, self.moving, self.watch)
        stopped = f"all {plan.steps} steps were taken"
        for step in range(1, plan.steps + 1):
            self.step(step, draw.sets())
            last = step == plan.steps
            if last or step % plan.stop.every == 0:
                enough = keeper.check(step, self.adapted, self.moving, self.watch)
                if enough:
                    stopped = enough
                    break
        kept = keeper.restore(self.moving)
        self.watch({"kind": "end", "stopped": stopped, "kept_step": kept, "steps": step, **keeper.verdict()})
        return self.adapted

    def step(self, step: int, sets: Mapping[str, Batch]) -> None:
        start = time.monotonic()
        self.optimizer.zero_grad(set_to_none=True)
        shares = {name: Share(sum(e.rows for e in batch), len(batch)) for name, batch in sets.items()}
        total: dict[str, float] = {}
        for part in _parts(sets, self.plan.accumulate):
            for name, value in self.descend(step, part, shares).items():
                total[name] = total.get(name, 0.0) + value
        gradient = self.norms.gradients(self.moving, lambda name: kind_of(name, self.kinds))
        if not math.isfinite(sum(gradient.values())):
            self.fail(step, "a gradient", sets)
        if self.plan.clip:
            nn.utils.clip_grad_norm_(self.moving.values(), self.plan.clip)
        rate = self.plan.rate(step)
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        self.optimizer.step()
        self.watch(
            {
                "kind": "step",
                "step": step,
                "loss": total.pop("loss"),
                "forget": total.get("forget"),
                "retain": total.get("retain"),
                "gradient": gradient,
                "delta": self.norms.deltas(self.changes()) if self.plan.norms else {},
                "learning_rate": rate,
                "size": sum(e.size for batch in sets.values() for e in batch),
                "seconds": time.monotonic() - start,
            }
        )

    def changes(self) -> Iterator[tuple[str, Tensor]]:
        """The change of each adapted layer so far."""
        return self.plan.adapter.deltas(self.adapted, self.before)

    def descend(self, step: int, sets: Mapping[str, Batch], shares: Mapping[str, Share]) -> dict[str, float]:
        """Gradients of one part of a step, added to those of the parts before; its losses."""
        now = View(self.adapted, sets, shares, level=self.level, together=self.reads["now"])
        before = View(self.before, sets, shares, gradients=False, together=self.reads["before"])
        loss: Tensor | None = None
        for weight, term in self.plan.objective.terms():
            value = term(now, before)
            if not torch.isfinite(value):
                self.fail(step, f"the term {term!r}", sets)
            loss = weight * value if loss is None else loss + weight * value
        assert loss is not None
        # Which sets an objective reads does not depend on what they say, so from now on one call reads them all.
        self.reads = {"now": tuple(now.said), "before": tuple(before.said)}
        loss.backward()
        return {"loss": float(loss.detach()), **{name: float(said.nll().detach()) for name, said in now.said.items()}}

    def fail(self, step: int, what: str, sets: Mapping[str, Batch]) -> None:
        ids = "; ".join(f"{name}: {', '.join(e.id for e in batch)}" for name, batch in sets.items())
        error = RunFailed(
            f"step {step}: {what} is NaN or infinite (records {ids}). The step was not applied. "
            f"Lower learning_rate, or set clip."
        )
        error.last_good = self.adapted
        raise error


def _parts(sets: Mapping[str, Batch], count: int) -> Iterator[dict[str, Batch]]:
    """Each set cut into `count` nearly equal runs; into fewer where a set is shorter, so that no part lacks a set."""
    count = min(count, *map(len, sets.values()))
    for k in range(count):
        yield {name: batch[k * len(batch) // count : (k + 1) * len(batch) // count] for name, batch in sets.items()}
