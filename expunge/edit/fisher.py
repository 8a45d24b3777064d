"""Gradients and importances of a network's parameters: what the edits read.

No weight is copied: a fork over the same storage carries the gradients, and the network itself is not touched. A batch
that does not fit one call is read in parts that add up to it exactly.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Iterator

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


def size(said: Predictions) -> Tensor:
    """Squared length of the class scores: mean over rows. Reads no label."""
    return said.over_rows(said.each_row(_squared))


def _squared(_labels: Tensor, logits: Tensor) -> Tensor:
    return logits.square().sum(-1)


def gradient(network: Network, measure: Measure, *sets: tuple[float, Batch]) -> Gradient:
    """The gradient of a weighted sum of `measure` over whole sets, added up in one place."""
    slopes = _Slopes(network)
    for weight, examples in sets:
        slopes.add(examples, measure, weight)
    return dict(slopes.take())


def squared(network: Network, examples: Batch, batch: int, measure: Measure = loss) -> Gradient:
    """Mean over runs of `batch` examples of the squared gradient of their mean: the diagonal of the empirical Fisher
    matrix where a batch is one example."""
    return _mean(network, examples, batch, measure, Tensor.square)


def absolute(network: Network, examples: Batch, batch: int, measure: Measure = size) -> Gradient:
    """Mean over runs of `batch` examples of the size of the gradient of their mean."""
    return _mean(network, examples, batch, measure, Tensor.abs)


def _mean(network: Network, examples: Batch, batch: int, measure: Measure, of: Callable[[Tensor], Tensor]) -> Gradient:
    slopes, total = _Slopes(network), Gradient()
    # Mixed by their contents: files are often sorted by class, and a batch's mean gradient depends on its company.
    mixed = sorted(examples, key=lambda example: example.content())
    runs = math.ceil(len(mixed) / batch)
    for start in range(0, len(mixed), batch):
        slopes.add(mixed[start : start + batch], measure)
        for name, slope in slopes.take():
            total[name] = of(slope).div_(runs) if name not in total else total[name].add_(of(slope), alpha=1 / runs)
    return total


def copied(network: Network) -> Network:
    """A network with weights of its own: what an edit writes into."""
    return network.fork(copy.deepcopy(network.module))


class _Slopes:
    """The gradient so far, on a fork whose every floating-point number has one."""

    def __init__(self, network: Network) -> None:
        self.fork = network.fork()
        self.moving = {n: p.requires_grad_() for n, p in self.fork.module.named_parameters() if p.is_floating_point()}
        self.wide: Gradient = {}

    def add(self, examples: Batch, measure: Measure, weight: float = 1.0) -> None:
        """Add `weight` times the gradient of `measure` on `examples`."""
        share = Share(sum(e.rows for e in examples), len(examples))
        for group in self.fork.batches(examples):
            value = weight * measure(self.fork.predict([examples[k] for k in group]).part_of(share))
            if not torch.isfinite(value):
                ids = ", ".join(examples[k].id for k in group[:5])
                raise RunFailed(f"What the edit measures is NaN or infinite (records {ids}). Mend the model.")
            value.backward()
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
