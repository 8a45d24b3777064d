"""The gradient of a mean over examples, of a whole set or batch by batch: for edits, and for adapters that start from
it.

No weight is copied: a fork over the same storage holds the gradients, and the network itself is not changed. A batch
that does not fit one forward pass is read in micro-batches that add up to it exactly; when memory runs out, in smaller
ones from then on.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass, field
from functools import partial

import torch
from torch import Tensor

from expunge.core.model import Batch, Network
from expunge.core.predictions import Predictions, Share
from expunge.core.question import Scores
from expunge.core.request import Example
from expunge.errors import RunFailed
from expunge.primitives.out_of_memory import in_fitting_batches

Gradient = dict[str, Tensor]
"""The gradient of each parameter by name, in float32 at least."""
HALF = (torch.bfloat16, torch.float16)
Measure = Callable[[Predictions], Tensor]
"""A mean over rows or examples, of which the gradient is taken."""


def loss(predictions: Predictions) -> Tensor:
    """Cross-entropy: mean over rows, in nats."""
    return predictions.nll()


def gradient(network: Network, measure: Measure, *sets: tuple[float, Batch]) -> Gradient:
    """The gradient of a weighted sum of `measure` over whole sets."""
    slopes = Slopes(network)
    for weight, examples in sets:
        slopes.add(examples, measure, weight)
    return dict(slopes.take())


class Slopes:
    """The gradient so far, on a fork: of all floating-point parameters, or of the named ones."""

    def __init__(self, network: Network, names: Collection[str] | None = None) -> None:
        self.fork = network.fork()
        self.moving: dict[str, Tensor] = {}
        self.wide: Gradient = {}
        self.begun: list[_Begun] = []
        for name, parameter in self.fork.module.named_parameters():
            moves = parameter.is_floating_point() and (names is None or name in names)
            parameter.requires_grad_(moves)
            if moves:
                self.moving[name] = parameter
                # Not a method of `self`, which refers to the fork: a reference cycle would be freed late.
                added = partial(_record_slope, name, self.begun, self.wide)
                parameter.register_post_accumulate_grad_hook(added)

    def add(self, examples: Batch, measure: Measure, weight: float = 1.0) -> None:
        """Add `weight` times the gradient of `measure` on `examples`."""
        share = Share.of(examples)
        self.begun.clear()
        groups = self.fork.batches(examples)
        read = partial(self._read, share=share, measure=measure, weight=weight)
        for _ in in_fitting_batches(self.fork.module, examples, groups, read):
            pass

    def _read(self, part: list[Example], share: Share, measure: Measure, weight: float) -> None:
        """Add a micro-batch's gradient, but not to parameters that got it before an earlier attempt ran out of
        memory."""
        had = set[str]().union(*(begun.names for begun in self.begun))
        self.begun.append(_Begun(len(part)))
        value = weight * measure(self.fork.ask(Scores(), part).part_of(share))
        if not torch.isfinite(value):
            ids = ", ".join(example.id for example in part[:5])
            raise RunFailed(f"The loss is NaN or infinite (records {ids}). Check the model's weights.")
        lacking = [parameter for name, parameter in self.moving.items() if name not in had]
        if lacking:
            value.backward(inputs=lacking)
        for begun in self.begun:
            begun.left -= len(part)
        self.begun[:] = [begun for begun in self.begun if begun.left]

    def take(self) -> Iterator[tuple[str, Tensor]]:
        """The gradient of each parameter, which is then reset; 0 where the loss does not depend on it."""
        for name, parameter in self.moving.items():
            slope = self.wide.pop(name, None) if parameter.dtype in HALF else parameter.grad
            parameter.grad = None
            yield name, torch.zeros_like(parameter, dtype=_wide(parameter.dtype)) if slope is None else slope.detach()


@dataclass
class _Begun:
    """A micro-batch whose backward has started: how many of its examples are left, and which parameters have its
    gradient.

    One that does not fit is read again in smaller runs, which follow directly and in order, so they count it down to 0.
    """

    left: int
    names: set[str] = field(default_factory=set)


def _record_slope(name: str, begun: list[_Begun], wide: Gradient, parameter: Tensor) -> None:
    """Note that a parameter has got the gradient of the current micro-batch."""
    begun[-1].names.add(name)
    if parameter.dtype in HALF and parameter.grad is not None:  # a sum of many would be lost in its rounding
        sum_of_it = wide.get(name)
        wide[name] = parameter.grad.float() if sum_of_it is None else sum_of_it.add_(parameter.grad)
        parameter.grad = None


def _wide(dtype: torch.dtype) -> torch.dtype:
    return torch.float32 if dtype in HALF else dtype
