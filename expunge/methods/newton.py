"""Newton's step of the last layer (Guo et al., 2020, arXiv 1911.03030): deletion without training.

    L(W) = mean over the retained rows of CE(W phi(x), y) + l2 / 2 |W|^2        W' = W - H(W)^-1 grad L(W)

phi(x) is what the last layer reads, H the Hessian of L over all its weights; biases are not penalised. L is convex, so
where the last layer is all that was trained (a linear probe, a head on a pretrained encoder), W' comes close to the
head trained anew without the forget set, and `steps` of it reach that head whatever the forget set was: nothing of the
forget set is read. `l2` must be what the head was trained with; otherwise the step also moves what had not settled.

The layers below are the original's. If they were trained on the forget set, they still know it, and `LinearProbe`
finds it there: this is exact for the head, and no more. A language model's head has millions of weights and a row for
each token, of which each product with H reads all.
"""

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from expunge.adapters._layers import output_layer
from expunge.adapters.last_layer import LastLayer
from expunge.core.method import WeightMethod
from expunge.core.model import Model, Network
from expunge.core.question import Scores
from expunge.core.request import Request
from expunge.errors import DataRefused, UsageRefused
from expunge.events import Note, OnEvent
from expunge.internals.changes import describe_change
from expunge.internals.convex_head import ConvexHead
from expunge.internals.representation import represent


@dataclass(frozen=True)
class Newton(WeightMethod):
    """The last layer as it would be without the forget set, by its curvature on the retain set."""

    l2: float = 0.001
    """The penalty that the layer was trained with: l2 / 2 times the sum of its squared weights, beside a mean loss."""
    steps: int = 1
    """Newton's steps. One is the influence of the forget set; more end where the head is trained anew."""

    def __post_init__(self) -> None:
        if not 0 < self.l2 < math.inf:
            raise UsageRefused(f"The `l2` of Newton must be positive and finite. Got {self.l2!r}.")
        if self.steps < 1:
            raise UsageRefused(f"The `steps` of Newton must be at least 1. Got {self.steps!r}.")

    def change(self, network: Network, request: Request, on_event: OnEvent) -> Model:
        if not request.retain:
            raise DataRefused("Newton goes by the retain set, and the request has none. Give --retain.")
        adapted = LastLayer().insert(network, request)
        _, layer = output_layer(adapted)
        moved: Any = layer.parametrizations
        head = self._head(network, request, layer)
        start = layer.weight if layer.bias is None else torch.cat([layer.weight, layer.bias[:, None]], 1)
        first = at = start.detach().to(head.features)
        for _ in range(self.steps):
            at = head.step(at)
        if network.device.type != "meta":
            slopes = [float(head.slope(weights).norm()) for weights in (first, at)]
            on_event(Note("the slope of the last layer's loss: {:.2g} -> {:.2g}".format(*slopes)))
        change = at - first
        with torch.no_grad():
            moved["weight"][0].delta.copy_(change[:, : layer.in_features])
            if layer.bias is not None:
                moved["bias"][0].delta.copy_(change[:, -1])
        result = LastLayer().merge(adapted)
        on_event(describe_change(network, result))
        return result

    def _head(self, network: Network, request: Request, layer: nn.Linear) -> ConvexHead:
        """What the last layer reads of each retained row, and that row's label."""
        read, labels, rows = [], [], list[float]()
        with torch.no_grad():
            for group in network.batches(request.retain):
                batch = [request.retain[k] for k in group]
                rows += [example.weight for example in batch for _ in range(example.rows)]
                read.append(represent(network, batch).double())
                labels.append(network.ask(Scores(), batch).labels)
        features = torch.cat(read)
        weights = features.new_tensor(rows)
        penalty = features.new_full((features.shape[1],), self.l2)
        if layer.bias is not None:
            features = torch.cat([features, features.new_ones(len(features), 1)], 1)
            penalty = torch.cat([penalty, penalty.new_zeros(1)])
        return ConvexHead(features, torch.cat(labels).to(features.device), weights / weights.sum(), penalty)
