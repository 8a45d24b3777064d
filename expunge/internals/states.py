"""One layer of a network from inside: what it says of each example, and how the answer moves with it.

The layer is a transformer's block by number, where an example's state is that at its first row (the last token of the
prompt, the class token), or any module by its name, where it is all that the module makes of the example.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from expunge.core.model import Batch, Network
from expunge.core.question import HiddenStates, Scores
from expunge.errors import EnvironmentRefused, ModelRefused, UsageRefused
from expunge.internals.blocks import blocks

if TYPE_CHECKING:
    from jaxtyping import Float

Layer = int | float | str
"""A block as `HiddenStates` names it, or a module by its name."""


def log_odds(labels: Tensor, logits: Tensor) -> Tensor:
    """Log-probability of the right class less that of all others together: unlike a log-probability, it never
    saturates, so its slope is not lost in rounding where the model is sure."""
    others = logits.scatter(-1, labels[:, None], -math.inf).logsumexp(-1)
    return logits.gather(-1, labels[:, None]).squeeze(-1) - others


@dataclass(frozen=True)
class Inside:
    """A layer of a network, read and written."""

    network: Network
    layer: Layer = 0.75

    @staticmethod
    def of(network: Network, layer: Layer = 0.75) -> Inside:
        """Examples side by side: a batch read as one tree would have to be taken apart, as states there are shared."""
        return Inside(network.side_by_side(), layer)

    def states(self, examples: Batch) -> Float[Tensor, "examples width"]:
        """The state of each example, without gradients."""
        return self._each(examples, lambda some, batch, seats: seats.states)

    def slopes(self, examples: Batch) -> Float[Tensor, "examples width"]:
        """How each example's log-odds rise with its state."""

        def read(some: list[int], batch: Batch, seats: _Seats) -> Tensor:
            here = seats.states.requires_grad_()
            (slope,) = torch.autograd.grad(self._odds(batch, seats, here).sum(), here)
            return slope

        return self._each(examples, read)

    def mean_slopes(
        self, examples: Batch, baseline: Float[Tensor, " width"], steps: int
    ) -> Float[Tensor, "examples width"]:
        """The mean slope on the straight way from `baseline` to each example's state: times the way, it adds up to the
        rise of the log-odds (integrated gradients)."""
        try:
            from captum.attr import IntegratedGradients  # an extra
        except ImportError as error:
            raise EnvironmentRefused("Integrated gradients need captum: pip install 'expunge[concepts]'.") from error

        def read(some: list[int], batch: Batch, seats: _Seats) -> Tensor:
            gradients = IntegratedGradients(lambda here: self._odds(batch, seats, here), multiply_by_inputs=False)
            found: Tensor = gradients.attribute(
                seats.states, baseline[None].to(seats.states), n_steps=steps, internal_batch_size=len(batch)
            )
            return found.detach()

        return self._each(examples, read)

    def odds(self, examples: Batch, states: Float[Tensor, "examples width"]) -> Float[Tensor, " examples"]:
        """Log-odds of each example's right answer, a mean over its rows, as if its state were that of `states`."""
        with torch.no_grad():
            return self._each(examples, lambda some, batch, seats: self._odds(batch, seats, states[some]))

    @property
    def module(self) -> nn.Module:
        """The layer itself."""
        if isinstance(self.layer, str):
            named = dict(self.network.module.named_modules())
            if self.layer not in named:
                raise UsageRefused(
                    f"There is no layer '{self.layer}' in {type(self.network.module).__name__}. Give one of its "
                    f"modules, such as '{list(named)[-1]}', or a block's number."
                )
            return named[self.layer]
        found = list(blocks(self.network.module).values())
        if not found:
            raise ModelRefused(
                f"{type(self.network.module).__name__} has no transformer blocks, so no hidden states to read by "
                f"number. Name the layer: layer='...'."
            )
        return found[HiddenStates(self.layer).block(len(found))]

    def _odds(self, batch: Batch, seats: _Seats, states: Float[Tensor, "batch width"]) -> Float[Tensor, " batch"]:
        with _changed(self.module, lambda made: seats.put(made, states.to(made))):
            said = self.network.ask(Scores(), batch)
        return said.mean(said.each_row(log_odds))

    def _each(self, examples: Batch, read: Callable[[list[int], Batch, _Seats], Tensor]) -> Tensor:
        """`read` of batches in which no example can be moved by another's state, in the order of the examples."""
        parts: list[Tensor] = [torch.empty(0)] * len(examples)
        for group in self.network.batches(examples):
            for some, seats in self._apart(group, examples):
                values = read(some, [examples[k] for k in some], seats)
                for place, value in zip(some, values.detach(), strict=True):
                    parts[place] = value
        return torch.stack(parts)

    def _apart(self, group: list[int], examples: Batch) -> Iterator[tuple[list[int], _Seats]]:
        seats = self._seats([examples[k] for k in group])
        if seats is not None:
            yield group, seats
            return
        if len(group) == 1:
            raise UsageRefused(f"The layer {self.layer!r} makes no one state of an example. Give a block's number.")
        for k in group:  # they share one run of tokens, where the state of one is read by others
            yield from self._apart([k], examples)

    def _seats(self, batch: Batch) -> _Seats | None:
        """Where the layer's output holds each example's state; None where examples are not apart from one another."""
        made: dict[str, Tensor] = {}
        with torch.no_grad():
            if isinstance(self.layer, str):
                with _changed(self.module, lambda output: made.setdefault("output", output)):
                    self.network.ask(Scores(), batch)
                output = made["output"]
                # Of texts the states of a whole layer are as many as their tokens, so no two are alike in shape.
                one = output.dim() == 2 or (output.dim() > 2 and all(example.size == 1 for example in batch))
                return _Seats(None, output.flatten(1)) if one and len(output) == len(batch) else None
            number = list(blocks(self.network.module).values()).index(self.module)
            with _changed(self.module, lambda output: made.setdefault("output", output)):
                self.network.ask(HiddenStates(number), batch)
            with _changed(self.module, _counted):
                felt = self.network.ask(HiddenStates(number), batch)
            first = felt.counts().cumsum(0) - felt.counts()
            at = felt.states[first, 0].long()
            output = made["output"]
            lines = at // math.prod(output.shape[1:-1])
            alone = len(batch) == 1 or len(lines.unique()) == len(batch)
            return _Seats(at, output.flatten(0, -2)[at]) if alone else None


@dataclass(frozen=True)
class _Seats:
    """Where a layer's output holds the state of each example of a batch."""

    at: Tensor | None
    """Its place among all positions of the output; None where an example's state is all that is made of it."""
    states: Tensor

    def put(self, output: Tensor, states: Tensor) -> Tensor:
        """The output with `states` in their seats."""
        if self.at is None:
            return states.view_as(output)
        return output.flatten(0, -2).index_put((self.at,), states).view_as(output)


@contextmanager
def _changed(module: nn.Module, change: Callable[[Tensor], Tensor]) -> Iterator[None]:
    """The module with its output changed."""

    def hook(_module: nn.Module, _inputs: tuple[Any, ...], made: Any) -> Any:
        return change(made) if isinstance(made, Tensor) else (change(made[0]), *made[1:])

    handle = module.register_forward_hook(hook)
    try:
        yield
    finally:
        handle.remove()


def _counted(output: Tensor) -> Tensor:
    """The output with every position's number in its place."""
    numbers = torch.arange(math.prod(output.shape[:-1]), dtype=torch.float64, device=output.device)
    return numbers.view(*output.shape[:-1], 1).expand(output.shape)
