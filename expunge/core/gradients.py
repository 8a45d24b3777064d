"""The gradient of a mean over examples, whole set or run by run: what edits weigh by and some adapters begin from.

No weight is copied: a fork over the same storage carries the gradients, and the network itself is not touched. A batch
that does not fit one call is read in parts that add up to it exactly.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator

import torch
from torch import Tensor

from expunge.core.errors import RunFailed
from expunge.core.model import Batch, Network
from expunge.core.predictions import Predictions, Share

Gradient = dict[str, Tensor]
"""A number for each number of each parameter, in float32 at least."""
HALF = (torch.bfloat16, torch.float16)
Measure = Callable[[Predictions], Tensor]
"""A mean over rows or examples, of which the gradient is taken."""


def loss(said: Predictions) -> Tensor:
    """Cross-entropy: mean over rows, in nats."""
    return said.nll()


def gradient(network: Network, measure: Measure, *sets: tuple[float, Batch]) -> Gradient:
    """The gradient of a weighted sum of `measure` over whole sets, added up in one place."""
    slopes = Slopes(network)
    for weight, examples in sets:
        slopes.add(examples, measure, weight)
    return dict(slopes.take())


class Slopes:
    """The gradient so far, on a fork whose floating-point numbers have one: all of them, or the named parameters."""

    def __init__(self, network: Network, names: Collection[str] | None = None) -> None:
        self.fork = network.fork()
        self.moving: dict[str, Tensor] = {}
        for name, parameter in self.fork.module.named_parameters():
            moves = parameter.is_floating_point() and (names is None or name in names)
            parameter.requires_grad_(moves)
            if moves:
                self.moving[name] = parameter
        self.wide: Gradient = {}

    def add(self, examples: Batch, measure: Measure, weight: float = 1.0) -> None:
        """Add `weight` times the gradient of `measure` on `examples`."""
        share = Share(sum(e.rows for e in examples), len(examples))
        for group in self.fork.batches(examples):
            value = weight * measure(self.fork.predict([examples[k] for k in group]).part_of(share))
            if not torch.isfinite(value):
                ids = ", ".join(examples[k].id for k in group[:5])
                raise RunFailed(f"What the gradient is taken of is NaN or infinite (records {ids}). Mend the model.")
            value.backward()  # type: ignore[no-untyped-call]
            for name, parameter in self.moving.items():
                if parameter.dtype in HALF and parameter.grad is not None:  # a sum of many is lost in its rounding
                    self.wide[name] = self.wide.get(name, 0) + parameter.grad.float()
                    parameter.grad = None

    def take(self) -> Iterator[tuple[str, Tensor]]:
        """The gradient of each parameter, which is then forgotten; 0 where it had no part."""
        for name, parameter in self.moving.items():
            slope = self.wide.pop(name, None) if parameter.dtype in HALF else parameter.grad
            parameter.grad = None
            yield name, torch.zeros_like(parameter, dtype=_wide(parameter.dtype)) if slope is None else slope.detach()


def _wide(dtype: torch.dtype) -> torch.dtype:
    return torch.float32 if dtype in HALF else dtype
