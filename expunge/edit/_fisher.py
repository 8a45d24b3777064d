"""Importances of a network's parameters for the dampening edits (gradients: `internals/gradients.py`).

No weight is copied: a fork over the same storage holds the gradients, and the network itself is not changed.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable
from typing import Protocol, runtime_checkable

from torch import Tensor

from expunge.core.model import Batch, Network
from expunge.core.predictions import Predictions
from expunge.internals.gradients import Gradient, Measure, Slopes, loss


def size(predictions: Predictions) -> Tensor:
    """Squared length of the class scores: mean over rows. Reads no label."""
    return predictions.over_rows(predictions.each_row(_squared_length))


def _squared_length(_labels: Tensor, logits: Tensor) -> Tensor:
    return logits.square().sum(-1)


def mean_squared_gradient(network: Network, examples: Batch, batch: int, measure: Measure = loss) -> Gradient:
    """Mean over runs of `batch` examples of the squared gradient of their mean: the diagonal of the empirical Fisher
    matrix where a batch is one example."""
    return _mean(network, examples, batch, measure, Tensor.square)


def mean_absolute_gradient(network: Network, examples: Batch, batch: int, measure: Measure = size) -> Gradient:
    """Mean over runs of `batch` examples of the size of the gradient of their mean."""
    return _mean(network, examples, batch, measure, Tensor.abs)


@runtime_checkable
class Digested(Protocol):
    """An example that has a digest without its label: an image."""

    @property
    def digest(self) -> str:
        """SHA-256 of its pixels."""


def _mean(network: Network, examples: Batch, batch: int, measure: Measure, of: Callable[[Tensor], Tensor]) -> Gradient:
    slopes, total = Slopes(network), Gradient()
    # Shuffled by content: files are often sorted by class, and the mean gradient depends on the batch. Images are
    # ordered by their pixels alone, since the record digest includes the class, and LFSSD must not read labels.
    mixed = sorted(examples, key=lambda e: e.digest if isinstance(e, Digested) else e.record_digest())
    runs = math.ceil(len(mixed) / batch)
    for start in range(0, len(mixed), batch):
        slopes.add(mixed[start : start + batch], measure)
        for name, slope in slopes.take():
            total[name] = of(slope).div_(runs) if name not in total else total[name].add_(of(slope), alpha=1 / runs)
    return total


def copy_network(network: Network) -> Network:
    """A network with its own copy of the weights, for an edit to change."""
    return network.fork(copy.deepcopy(network.module))
