"""Hidden states of one layer, the gradient of the answer with respect to them, and answers with states replaced.

The layer is a transformer block by number, and an example's state is then that at its first row (the last token of the
prompt, the class token); or any module by name, and the state is then the module's whole output for the example.
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
    """A layer of a network whose states are read and replaced."""

    network: Network
    layer: Layer = 0.75

    @staticmethod
    def of(network: Network, layer: Layer = 0.75) -> Inside:
        """The layer of the network, read in padded batches: in a prefix tree examples share states."""
        return Inside(network.side_by_side(), layer)

    def states(self, examples: Batch) -> Float[Tensor, "examples width"]:
        """The state of each example, without gradients."""
        return self._each(examples, lambda some, batch, places: places.states)

    def slopes(self, examples: Batch) -> Float[Tensor, "examples width"]:
        """Gradient of each example's log-odds with respect to its state."""

        def read(some: list[int], batch: Batch, places: _Places) -> Tensor:
            here = places.states.requires_grad_()
            (slope,) = torch.autograd.grad(self._odds(batch, places, here).sum(), here)
            return slope

        return self._each(examples, read)

    def mean_slopes(
        self, examples: Batch, baseline: Float[Tensor, " width"], steps: int
    ) -> Float[Tensor, "examples width"]:
        """Integrated gradients: the mean gradient on the line from `baseline` to each example's state. Multiplied by
        the
        difference of the two it adds up to the rise of the log-odds."""
        try:
            from captum.attr import IntegratedGradients  # an extra
        except ImportError as error:
            raise EnvironmentRefused("Integrated gradients need captum: pip install 'expunge[concepts]'.") from error

        def read(some: list[int], batch: Batch, places: _Places) -> Tensor:
            gradients = IntegratedGradients(lambda here: self._odds(batch, places, here), multiply_by_inputs=False)
            found: Tensor = gradients.attribute(
                places.states, baseline[None].to(places.states), n_steps=steps, internal_batch_size=len(batch)
            )
            return found.detach()

        return self._each(examples, read)

    def odds(self, examples: Batch, states: Float[Tensor, "examples width"]) -> Float[Tensor, " examples"]:
        """Log-odds of each example's right answer, a mean over its rows, with its state replaced by that of
        `states`."""
        with torch.no_grad():
            return self._each(examples, lambda some, batch, places: self._odds(batch, places, states[some]))

    @property
    def module(self) -> nn.Module:
        """The layer itself."""
        if isinstance(self.layer, str):
            named: dict[str, nn.Module] = dict(self.network.module.named_modules())
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

    def _odds(self, batch: Batch, places: _Places, states: Float[Tensor, "batch width"]) -> Float[Tensor, " batch"]:
        with _change_output(self.module, lambda made: places.put(made, states.to(made))):
            predictions = self.network.ask(Scores(), batch)
        return predictions.mean(predictions.each_row(log_odds))

    def _each(self, examples: Batch, read: Callable[[list[int], Batch, _Places], Tensor]) -> Tensor:
        """`read` of batches in which no example depends on another's state, in the order of the examples."""
        parts: list[Tensor] = [torch.empty(0)] * len(examples)
        for group in self.network.batches(examples):
            for some, places in self._apart(group, examples):
                values = read(some, [examples[k] for k in some], places)
                for place, value in zip(some, values.detach(), strict=True):
                    parts[place] = value
        return torch.stack(parts)

    def _apart(self, group: list[int], examples: Batch) -> Iterator[tuple[list[int], _Places]]:
        places = self._places([examples[k] for k in group])
        if places is not None:
            yield group, places
            return
        if len(group) == 1:
            raise UsageRefused(
                f"The layer {self.layer!r} does not give one state for each example. Give a block number."
            )
        for k in group:  # they share tokens, so that one's state is read by others
            yield from self._apart([k], examples)

    def _places(self, batch: Batch) -> _Places | None:
        """Where in the layer's output each example's state is; None where examples share states."""
        made: dict[str, Tensor] = {}
        with torch.no_grad():
            if isinstance(self.layer, str):
                with _change_output(self.module, lambda output: made.setdefault("output", output)):
                    self.network.ask(Scores(), batch)
                output = made["output"]
                # For texts a whole layer's output has one state for each token, so shapes differ between examples.
                one = output.dim() == 2 or (output.dim() > 2 and all(example.size == 1 for example in batch))
                return _Places(None, output.flatten(1)) if one and len(output) == len(batch) else None
            number = list(blocks(self.network.module).values()).index(self.module)
            with _change_output(self.module, lambda output: made.setdefault("output", output)):
                self.network.ask(HiddenStates(number), batch)
            with _change_output(self.module, _number_positions):
                hidden = self.network.ask(HiddenStates(number), batch)
            first = hidden.counts().cumsum(0) - hidden.counts()
            at = hidden.states[first, 0].long()
            output = made["output"]
            lines = at // math.prod(output.shape[1:-1])
            alone = len(batch) == 1 or len(lines.unique()) == len(batch)
            return _Places(at, output.flatten(0, -2)[at]) if alone else None


@dataclass(frozen=True)
class _Places:
    """Where in a layer's output the state of each example of a batch is."""

    at: Tensor | None
    """Index among all positions of the output; None where an example's state is the module's whole output for it."""
    states: Tensor

    def put(self, output: Tensor, states: Tensor) -> Tensor:
        """The output with `states` at these places."""
        if self.at is None:
            return states.view_as(output)
        return output.flatten(0, -2).index_put((self.at,), states).view_as(output)


@contextmanager
def _change_output(module: nn.Module, change: Callable[[Tensor], Tensor]) -> Iterator[None]:
    """Within the block the module's output is passed through `change`."""

    def hook(_module: nn.Module, _inputs: tuple[Any, ...], made: Any) -> Any:
        return change(made) if isinstance(made, Tensor) else (change(made[0]), *made[1:])

    handle = module.register_forward_hook(hook)
    try:
        yield
    finally:
        handle.remove()


def _number_positions(output: Tensor) -> Tensor:
    """A tensor of the output's shape that holds the number of each position."""
    numbers = torch.arange(math.prod(output.shape[:-1]), dtype=torch.float64, device=output.device)
    return numbers.view(*output.shape[:-1], 1).expand(output.shape)
