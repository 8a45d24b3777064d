"""The training loop: steps, checks of the losses between them, and the best step restored at the end."""

from __future__ import annotations

import math
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any, cast

import torch
from torch import Tensor, nn

from expunge.adapters._layers import Kind, kind_of, kinds_in_every_tower
from expunge.core.adapter import Adapted
from expunge.core.model import Batch
from expunge.core.predictions import Share
from expunge.core.request import Request
from expunge.core.view import Run, View
from expunge.errors import EnvironmentRefused, RunFailed, UsageRefused
from expunge.events import Event, Note, OnEvent, Step
from expunge.methods._lengths import as_steps
from expunge.notation.typed_json import event_from_json, event_to_json
from expunge.primitives.out_of_memory import try_in_memory
from expunge.runtime.parallel_model import ask_parts_together, cache_reference, share_reference
from expunge.runtime.processes import all_reduce, gather_full, is_main, share_of_step
from expunge.runtime.sharding import shard, silent_reference
from expunge.train.accumulation import Accumulation
from expunge.train.batches import Batches
from expunge.train.best_step import BestStep
from expunge.train.checkpoint import Checkpoints, facts, refuse_misfits
from expunge.train.norms import Norms
from expunge.train.passes import Passes

if TYPE_CHECKING:
    from expunge.methods.finetune import Finetune


@dataclass
class Loop:
    """One run of fine-tuning."""

    plan: Finetune
    adapted: Adapted
    """The result. With several processes its shards are trained, and gathered where the whole is needed."""
    request: Request
    on_event: OnEvent
    checkpoints: Checkpoints | None

    def __post_init__(self) -> None:
        self.before = self.adapted.original
        self.now = shard(self.adapted.inner)
        self.reference, self.silenced = silent_reference(self.before, self.now)
        # The original model does not change: it reads each example once, not once an epoch.
        self.known = cache_reference(self.before, self.reference, self.silenced)
        self.moving = self.now.trainable()
        self.kinds: dict[str, Kind] = kinds_in_every_tower(self.before.module)
        self.passes: Passes | None = None
        self.norms = Norms()
        self.delta: dict[str, float] = {}
        self.run = Run(whole=self.request.sets())
        self.reads: dict[str, tuple[str, ...]] = {"now": (), "before": ()}
        self.events: list[Event] = []
        self.parts = Accumulation([(1, self.plan.accumulate)])
        moving, rate, decay = self.moving.values(), self.plan.learning_rate, self.plan.weight_decay
        self.optimizer: torch.optim.Optimizer = (
            torch.optim.AdamW(moving, lr=rate, weight_decay=decay)
            if self.plan.optimizer == "adamw"
            else torch.optim.SGD(moving, lr=rate, momentum=0.9, weight_decay=decay)
        )

    def train(self) -> Adapted:
        """Take the steps; the adapted network with the best one's weights."""
        plan, steps = self.plan, as_steps(self.plan.steps)
        prune = (plan.prune, steps) if plan.prune else None
        draw = Batches(self.request, plan.batch, plan.retain_batch, plan.seed, prune)
        self.passes = draw.passes
        keeper = plan.checks.watch(ask_parts_together(self.before, self.reference, self.silenced), self.request)
        self.run.level = keeper.level
        layers = [name for name, _ in self.changes()]
        moving, whole = (
            sum(p.numel() for p in some) for some in (self.moving.values(), self.before.module.parameters())
        )
        self.on_event(keeper.start(len(layers), moving, whole, steps))
        begun = self.resume(draw, keeper) if self.checkpoints and self.checkpoints.resume else 0
        if not begun:
            self.check(0, keeper)
        stopped = f"all {steps} steps were taken"
        for step in range(begun + 1, steps + 1):
            self.step(step, draw.sets())
            last = step == steps or bool(self.passes and self.passes.at_end)
            if last or step % plan.checks.every == 0:
                enough = self.check(step, keeper)
                if enough:
                    stopped = enough
                    break
            if last:
                break
            if self.checkpoints and not last and step % self.checkpoints.every == 0:
                self.checkpoints.write(step, self.facts, self.tensors(keeper), self.state(keeper))
        if self.passes and self.passes.at_end:
            stopped = f"all {self.passes.epochs} passes were read"
            self.tell(Note(f"{plan.prune!r} left {self.passes.unread:.0%} of the records of all passes unread"))
        keeper.restore(self.moving)
        self.gather()
        self.on_event(keeper.end(stopped, step, self.adapted.adapter.close(self.adapted.inner)))
        return self.adapted

    def check(self, step: int, keeper: BestStep) -> str:
        """Compute the losses between two steps. Returns the reason to stop, or an empty string."""
        growth = self.growth() if step and keeper.max_growth is not None else 0.0
        try:
            model = ask_parts_together(self.adapted.inner, self.now)
            return keeper.check(step, model, self.moving, self.tell, growth)
        except RunFailed as error:
            error.last_good = self.adapted if step else None
            raise

    def step(self, step: int, sets: Mapping[str, Batch]) -> None:
        start = time.monotonic()
        total = self.gradient(step, sets)
        gradient = self.norms.gradients(self.moving, lambda name: kind_of(name, self.kinds))
        if not math.isfinite(sum(gradient.values())):
            self.fail(step, "a gradient", sets)
        if self.plan.clip:
            nn.utils.clip_grad_norm_(self.moving.values(), self.plan.clip)
        if self.passes:
            self.passes.end_step(sets[self.passes.name])
        rate = self.plan.rate(1 + self.passes.progress * as_steps(self.plan.steps) if self.passes else step)
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        self.optimizer.step()
        self.delta = self.norms.deltas(self.changes()) if self.plan.norms else {}
        self.tell(
            Step(
                step=step,
                loss=total.pop("loss"),
                forget=total.get("forget"),
                retain=total.get("retain"),
                gradient=gradient,
                delta=dict(self.delta),
                learning_rate=rate,
                size=sum(e.size for batch in sets.values() for e in batch),
                seconds=time.monotonic() - start,
            )
        )

    def changes(self) -> Iterator[tuple[str, Tensor]]:
        """The change of each adapted layer so far."""
        self.gather()
        return self.adapted.changes()

    def growth(self) -> float:
        """Length of the weights' change so far, in lengths of all weights of the original."""
        if "frobenius" not in self.delta:  # the step did not report it
            with torch.no_grad():
                self.delta["frobenius"] = math.hypot(*(float(delta.norm()) for _, delta in self.changes()))
        return self.delta["frobenius"] / self.length

    @cached_property
    def length(self) -> float:
        """Euclidean norm of all weights of the original."""
        lengths = (float(torch.linalg.vector_norm(p.detach())) for p in self.before.module.parameters())
        return math.hypot(*lengths) or 1.0

    def gradient(self, step: int, sets: Mapping[str, Batch]) -> dict[str, float]:
        """A step's gradient and losses, in as many micro-batches as memory requires."""
        self.run.step, memory = step, self.run.memory
        while True:
            self.optimizer.zero_grad(set_to_none=True)
            # An attempt that runs out of memory has already changed the state of objectives.
            self.run.memory = {key: dict(kept) if isinstance(kept, dict) else kept for key, kept in memory.items()}
            try:
                read = try_in_memory(lambda: self.accumulate(step, sets))
            except UsageRefused as error:  # an objective that is not a mean has no micro-batches
                if self.parts.at(step) == self.plan.accumulate:
                    raise
                raise EnvironmentRefused(f"step {step}: out of memory with the whole batch, and {error}") from error
            if read is not None:
                return read[0]
            self.tell(self.parts.double(step, sets))

    def accumulate(self, step: int, sets: Mapping[str, Batch]) -> dict[str, float]:
        """The losses of a step's micro-batches, summed; gradients are accumulated."""
        shares = {name: Share.of(batch) for name, batch in sets.items()}
        total: dict[str, float] = {}
        for each in self.parts.cut(step, sets):
            for name, value in self.descend(step, each, shares).items():
                total[name] = total.get(name, 0.0) + value
        return total

    def descend(self, step: int, sets: Mapping[str, Batch], shares: Mapping[str, Share]) -> dict[str, float]:
        """Backward of one micro-batch; returns its losses."""
        mine, absent = share_of_step(sets)
        known = share_reference(self.known, sets)
        now = View(self.now, mine, shares, run=self.run, together=self.reads["now"], absent=absent)
        before = View(known, mine, shares, gradients=False, run=self.run, together=self.reads["before"], absent=absent)
        terms = [(weight, term, term(now, before)) for weight, term in self.plan.objective.terms()]
        if self.passes:
            self.passes.look(mine, now.scores_so_far, absent)
        loss = cast(Tensor, sum(weight * value for weight, _, value in terms))
        # An objective reads the same sets in every step, so from now on one forward pass reads them all.
        self.reads = {"now": tuple(now.scores_so_far), "before": tuple(before.scores_so_far)}
        with torch.no_grad():
            values = [
                loss,
                *(value for _, _, value in terms),
                *(predictions.nll() for predictions in now.scores_so_far.values()),
            ]
        added = all_reduce(torch.stack([value.detach().double() for value in values])).tolist()
        for (_, term, _), value in zip(terms, added[1:], strict=False):
            if not math.isfinite(value):
                self.fail(step, f"the term {term!r}", sets)
        loss.backward()
        return {"loss": added[0], **dict(zip(now.scores_so_far, added[1 + len(terms) :], strict=True))}

    def gather(self) -> None:
        """Copy the trained shards into the result."""
        if self.now is not self.adapted.inner:
            for name, parameter in self.adapted.inner.trainable().items():
                parameter.data.copy_(gather_full(self.moving[name].detach()))

    def tell(self, event: Event) -> None:
        self.events.append(event)
        self.on_event(event)

    @cached_property
    def facts(self) -> dict[str, str]:
        return facts(self.plan, self.before, self.request)

    @property
    def kept_by_optimizer(self) -> tuple[tuple[str, str], ...]:
        """What a checkpoint calls each tensor of the optimizer's state, and what torch calls it."""
        adamw = (("mean", "exp_avg"), ("square", "exp_avg_sq"))
        return adamw if self.plan.optimizer == "adamw" else (("mean", "momentum_buffer"),)

    def tensors(self, keeper: BestStep) -> dict[str, Tensor]:
        """The tensors of a checkpoint; those of the trainable parameters share their storage."""
        made = {f"direction.{layer}": direction for layer, direction in self.norms.directions.items()}
        for name, parameter in self.moving.items():
            slot = self.optimizer.state.get(parameter, {})
            made |= {
                f"now.{name}": parameter.detach(),
                f"best.{name}": keeper.state.get(name, torch.zeros_like(parameter)),
            } | {f"{kind}.{name}": slot.get(key, torch.zeros_like(parameter)) for kind, key in self.kept_by_optimizer}
        return made | {"rng": torch.get_rng_state()}

    def state(self, keeper: BestStep) -> dict[str, object]:
        """The rest of a checkpoint, as JSON. Tensors of objectives are recomputed from the original model."""
        memory = {key: dict(numbers) for key, numbers in self.run.memory.items() if isinstance(numbers, dict)}
        for numbers in memory.values():
            if "sum" in numbers:  # each rank's share of a step's loss
                numbers["sum"] = float(all_reduce(torch.tensor(numbers["sum"], dtype=torch.float64)))
        made = {"keeper": keeper.numbers(), "reads": self.reads, "memory": memory, "parts": self.parts.since}
        made |= {"losses": self.passes.told} if self.passes else {}
        return made | {"events": [event_to_json(event) for event in self.events]}

    def resume(self, draw: Batches, keeper: BestStep) -> int:
        """Continue from the newest checkpoint. Returns its step."""
        assert self.checkpoints
        tensors = self.tensors(keeper)
        done, state, passed = self.checkpoints.read(self.facts, tensors)
        with refuse_misfits(self.checkpoints.folder / f"step-{done:06}"):
            self.restore(done, tensors, state, keeper)
        for text in passed:
            self.on_event(Note(f"Passed over: {text}"))
        for line in state["events"]:
            self.tell(event_from_json(line))
        for step in range(1, done + 1):
            self.reread(step, draw.sets(), tuple(state["reads"]["before"]))
            if self.passes:
                self.passes.tell(state["losses"][step - 1])
        self.reads = {name: tuple(sets) for name, sets in state["reads"].items()}
        return done

    def restore(self, done: int, tensors: Mapping[str, Tensor], state: Any, keeper: BestStep) -> None:
        """Everything as it was after the step `done`."""
        [event_from_json(line) for line in state["events"]]
        for name, parameter in self.moving.items():
            kept = {key: tensors[f"{kind}.{name}"] for kind, key in self.kept_by_optimizer}
            self.optimizer.state[parameter] = {"step": torch.tensor(float(done)), **kept}
            keeper.state[name] = tensors[f"best.{name}"]
        torch.set_rng_state(tensors["rng"])
        self.norms.directions = {key[10:]: t for key, t in tensors.items() if key.startswith("direction.")}
        keeper.take(state["keeper"])
        self.run.memory = {
            key: {of: float(value) for of, value in each.items()} for key, each in state["memory"].items()
        }
        for numbers in () if is_main() else self.run.memory.values():
            if isinstance(numbers, dict) and "sum" in numbers:
                numbers["sum"] = 0.0
        self.parts = Accumulation([(int(first), int(parts)) for first, parts in state["parts"]])
        if not all(
            isinstance(sets, list) and set(sets) <= set(self.request.sets()) for sets in state["reads"].values()
        ):
            raise ValueError("reads")

    def reread(self, step: int, sets: Mapping[str, Batch], reads: tuple[str, ...]) -> None:
        """Fill the original model's cache in the same batches as the interrupted run did.

        The batch that an example is read in changes the last bits of its answers.
        """
        for each in self.parts.cut(step, sets):
            before = View(self.known, each, gradients=False, together=self.reads["before"])
            for name in reads:
                before.scores(name)
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
