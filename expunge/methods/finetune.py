"""The only training loop: moves an adapter's weights down an objective, until the forgetting is enough.

Forgetting is enough when the forget set's loss has reached that of examples which no model has seen (the holdout
set), not when it is as high as it will go: a loss far above betrays the forgotten as surely as one far below.
"""

from __future__ import annotations

import math
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Literal, Self

import torch
from torch import Tensor, nn

from expunge.adapters._layers import Kind, kind_of, kinds
from expunge.adapters.bounded import Bounded
from expunge.core.adapter import Adapter
from expunge.core.errors import EnvironmentRefused, RunFailed, UsageRefused
from expunge.core.method import Method, ignore_event
from expunge.core.model import Batch, Network, OnEvent
from expunge.core.objective import Objective
from expunge.core.predictions import Share
from expunge.core.rehearsal import Rehearsal
from expunge.core.request import Request
from expunge.core.view import Run, View
from expunge.methods.stop import Stop
from expunge.objectives.retain_kl import RetainKL
from expunge.objectives.retain_nll import RetainNLL
from expunge.objectives.settle import Settle
from expunge.runtime.out_of_memory import tried
from expunge.runtime.parallel_model import dealt, remembered, spread
from expunge.runtime.processes import all_reduce, gather_full, is_main, reference, shard, share_of_step
from expunge.train.accumulation import Accumulation
from expunge.train.activations import Activations, managed
from expunge.train.batches import Batches
from expunge.train.best_step import BestStep
from expunge.train.checkpoint import Checkpoints, facts
from expunge.train.norms import Norms

Schedule = Literal["constant", "linear", "cosine"]


@dataclass(frozen=True)
class Finetune(Method):
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

    def __call__(
        self,
        network: Network,
        request: Request,
        on_event: OnEvent = ignore_event,
        checkpoints: Checkpoints | None = None,
    ) -> Network:
        """The network after forgetting, with its adapter; `network` itself is left as it was."""
        devices = range(torch.cuda.device_count()) if torch.cuda.is_initialized() else ()
        with torch.random.fork_rng(devices=devices):
            torch.manual_seed(self.seed)
            adapted = self.adapter(network, request)
            run = _Run(self, network, adapted, request, on_event, checkpoints)
            with managed(run.now.module, self.activations):
                return run.train()

    @contextmanager
    def opened(self, network: Network, request: Request) -> Iterator[Network]:
        """The network as steps find it: with its adapter, and with blocks that keep their activations or do not."""
        adapted = self.adapter(network, request)
        with managed(adapted.module, self.activations):
            yield adapted

    def rehearse(self, network: Network, request: Request, rehearsal: Rehearsal) -> Network:
        few = min(self.steps, rehearsal.most)
        rehearsal.opened, rehearsal.shared, rehearsal.steps = self.opened, True, self.steps
        asked, later = self._asked(request, self.steps), self._asked(request, few)

        def on_event(event: dict[str, object]) -> None:
            if event["kind"] == "check" and event["step"] == 0:
                rehearsal.times, rehearsal.before = self.steps / few, asked / later
            elif event["kind"] == "step":
                rehearsal.size += float(str(event["size"])) * self.steps / few
                if event["step"] == few:  # the check after the last step stands for all but the first
                    rehearsal.times = math.ceil(self.steps / self.stop.every)

        # Nothing is to be learnt, and the run is not to end early: it looks at its losses twice.
        trial = replace(self, steps=few, learning_rate=1e-12, warmup=0, stop=replace(self.stop, every=few))
        try:
            return trial(network, request, on_event)
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


@dataclass
class _Run:
    plan: Finetune
    before: Network
    adapted: Network
    """The result. With many processes its parts are trained, and are put together where the whole is looked at."""
    request: Request
    on_event: OnEvent
    checkpoints: Checkpoints | None

    def __post_init__(self) -> None:
        self.now = shard(self.adapted)
        self.reference = reference(self.before, self.now)
        # What the model said before never changes: each example is read once, not once an epoch.
        self.known = remembered(self.before, self.reference)
        self.moving = self.now.trainable()
        self.kinds: dict[str, Kind] = kinds(self.before.module)
        self.norms = Norms()
        self.run = Run(whole=self.request.sets())
        self.reads: dict[str, tuple[str, ...]] = {"now": (), "before": ()}
        self.events: list[dict[str, object]] = []
        self.parts = Accumulation([(1, self.plan.accumulate)])
        self.optimizer = torch.optim.AdamW(
            self.moving.values(), lr=self.plan.learning_rate, weight_decay=self.plan.weight_decay
        )

    def train(self) -> Network:
        plan = self.plan
        draw = Batches(self.request, plan.batch, plan.retain_batch, plan.seed)
        keeper = plan.stop.keeper(spread(self.before, parts=self.reference), self.request)
        self.run.level = keeper.level
        layers = [name for name, _ in self.changes()]
        self.on_event(
            {
                "kind": "start",
                "layers": len(layers),
                "trainable": sum(p.numel() for p in self.moving.values()),
                "parameters": sum(p.numel() for p in self.before.module.parameters()),
                "steps": plan.steps,
                **keeper.facts(),
            }
        )
        begun = self.resume(draw, keeper) if self.checkpoints and self.checkpoints.resume else 0
        if not begun:
            keeper.check(0, spread(self.adapted, parts=self.now), self.moving, self.tell)
        stopped = f"all {plan.steps} steps were taken"
        for step in range(begun + 1, plan.steps + 1):
            self.step(step, draw.sets())
            last = step == plan.steps
            if last or step % plan.stop.every == 0:
                enough = keeper.check(step, spread(self.adapted, parts=self.now), self.moving, self.tell)
                if enough:
                    stopped = enough
                    break
            if self.checkpoints and not last and step % self.checkpoints.every == 0:
                self.checkpoints.write(step, self.facts, self.tensors(keeper), self.state(keeper))
        kept = keeper.restore(self.moving)
        self.gather()
        end = {"kind": "end", "stopped": stopped, "kept_step": kept, "steps": step, **keeper.verdict()}
        self.on_event(end | self.plan.adapter.close(self.adapted))
        return self.adapted

    def step(self, step: int, sets: Mapping[str, Batch]) -> None:
        start = time.monotonic()
        total = self.slope(step, sets)
        gradient = self.norms.gradients(self.moving, lambda name: kind_of(name, self.kinds))
        if not math.isfinite(sum(gradient.values())):
            self.fail(step, "a gradient", sets)
        if self.plan.clip:
            nn.utils.clip_grad_norm_(self.moving.values(), self.plan.clip)
        rate = self.plan.rate(step)
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        self.optimizer.step()
        self.tell(
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
        self.gather()
        return self.plan.adapter.deltas(self.adapted, self.before)

    def slope(self, step: int, sets: Mapping[str, Batch]) -> dict[str, float]:
        """A step's gradient and losses, in as many parts as memory needs."""
        self.run.step, memory = step, self.run.memory
        while True:
            self.optimizer.zero_grad(set_to_none=True)
            # A reading that breaks off has told objectives a part of the step already.
            self.run.memory = {key: dict(kept) if isinstance(kept, dict) else kept for key, kept in memory.items()}
            try:
                read = tried(lambda: self.added(step, sets))
            except UsageRefused as error:  # an objective that is no mean cannot be read in parts
                if self.parts.at(step) == self.plan.accumulate:
                    raise
                raise EnvironmentRefused(f"step {step}: out of memory when read at once, and {error}") from error
            if read is not None:
                return read[0]
            self.tell(self.parts.double(step, sets))

    def added(self, step: int, sets: Mapping[str, Batch]) -> dict[str, float]:
        """The losses of a step's parts, added up, and their gradients too."""
        shares = {name: Share(sum(e.rows for e in batch), len(batch)) for name, batch in sets.items()}
        total: dict[str, float] = {}
        for each in self.parts.cut(step, sets):
            for name, value in self.descend(step, each, shares).items():
                total[name] = total.get(name, 0.0) + value
        return total

    def descend(self, step: int, sets: Mapping[str, Batch], shares: Mapping[str, Share]) -> dict[str, float]:
        """Gradients of one part of a step, added to those of the parts before; its losses."""
        mine, absent = share_of_step(sets)
        known = dealt(self.known, sets)
        now = View(self.now, mine, shares, run=self.run, together=self.reads["now"], absent=absent)
        before = View(known, mine, shares, gradients=False, run=self.run, together=self.reads["before"], absent=absent)
        terms = [(weight, term, term(now, before)) for weight, term in self.plan.objective.terms()]
        loss = sum(weight * value for weight, _, value in terms)
        # Which sets an objective reads does not depend on what they say, so from now on one call reads them all.
        self.reads = {"now": tuple(now.said), "before": tuple(before.said)}
        with torch.no_grad():
            told = [loss, *(value for _, _, value in terms), *(said.nll() for said in now.said.values())]
        added = all_reduce(torch.stack([value.detach().double() for value in told])).tolist()
        for (_, term, _), value in zip(terms, added[1:], strict=False):
            if not math.isfinite(value):
                self.fail(step, f"the term {term!r}", sets)
        loss.backward()
        return {"loss": added[0], **dict(zip(now.said, added[1 + len(terms) :], strict=True))}

    def gather(self) -> None:
        """Put what was trained into the result."""
        if self.now is not self.adapted:
            for name, parameter in self.adapted.trainable().items():
                parameter.data.copy_(gather_full(self.moving[name].detach()))

    def tell(self, event: dict[str, object]) -> None:
        self.events.append(event)
        self.on_event(event)

    @cached_property
    def facts(self) -> dict[str, str]:
        return facts(self.plan, self.before, self.request)

    def tensors(self, keeper: BestStep) -> dict[str, Tensor]:
        """What a checkpoint holds of the run's tensors; those of `moving` are the parameters' own."""
        made = {f"direction.{layer}": direction for layer, direction in self.norms.directions.items()}
        for name, parameter in self.moving.items():
            slot = self.optimizer.state.get(parameter, {})
            made |= {
                f"now.{name}": parameter.detach(),
                f"best.{name}": keeper.state.get(name, torch.zeros_like(parameter)),
                f"mean.{name}": slot.get("exp_avg", torch.zeros_like(parameter)),
                f"square.{name}": slot.get("exp_avg_sq", torch.zeros_like(parameter)),
            }
        return made | {"rng": torch.get_rng_state()}

    def state(self, keeper: BestStep) -> dict[str, object]:
        """What a checkpoint holds beside tensors; objectives' tensors are worked out anew from the model before."""
        memory = {key: dict(numbers) for key, numbers in self.run.memory.items() if isinstance(numbers, dict)}
        for numbers in memory.values():
            if "sum" in numbers:  # each process's part of a step's loss
                numbers["sum"] = float(all_reduce(torch.tensor(numbers["sum"], dtype=torch.float64)))
        made = {"keeper": keeper.numbers(), "reads": self.reads, "memory": memory, "parts": self.parts.since}
        return made | {"events": self.events}

    def resume(self, draw: Batches, keeper: BestStep) -> int:
        """Take up the run where its newest checkpoint left it; the step that it had taken."""
        assert self.checkpoints
        tensors = self.tensors(keeper)
        done, state, passed = self.checkpoints.read(self.facts, tensors)
        for name, parameter in self.moving.items():
            self.optimizer.state[parameter] = {
                "step": torch.tensor(float(done)),
                "exp_avg": tensors[f"mean.{name}"],
                "exp_avg_sq": tensors[f"square.{name}"],
            }
            keeper.state[name] = tensors[f"best.{name}"]
        torch.set_rng_state(tensors["rng"])
        self.norms.directions = {key[10:]: t for key, t in tensors.items() if key.startswith("direction.")}
        keeper.take(state["keeper"])
        self.run.memory = state["memory"]
        for numbers in () if is_main() else self.run.memory.values():
            numbers |= {"sum": 0.0} if "sum" in numbers else {}
        for text in passed:
            self.on_event({"kind": "phase", "what": f"Passed over: {text}"})
        for event in state["events"]:
            self.tell(event)
        self.parts = Accumulation([(first, parts) for first, parts in state["parts"]])
        for step in range(1, done + 1):
            self.reread(step, draw.sets(), tuple(state["reads"]["before"]))
        self.reads = {name: tuple(sets) for name, sets in state["reads"].items()}
        return done

    def reread(self, step: int, sets: Mapping[str, Batch], reads: tuple[str, ...]) -> None:
        """Ask the model before, where its answers are remembered, in the groups in which a step asked it.

        How examples are grouped decides the last bits of what is said of them.
        """
        for each in self.parts.cut(step, sets):
            before = View(self.known, each, gradients=False, together=self.reads["before"])
            for name in reads:
                before.ask(name)
            self.reads["before"] = reads

    def fail(self, step: int, what: str, sets: Mapping[str, Batch]) -> None:
        ids = "; ".join(f"{name}: {', '.join(e.id for e in batch)}" for name, batch in sets.items())
        error = RunFailed(
            f"step {step}: {what} is NaN or infinite (records {ids}). The step was not applied. "
            f"Lower learning_rate, or set clip."
        )
        self.gather()
        error.last_good = self.adapted
        raise error
