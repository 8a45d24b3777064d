"""GNNDelete (Cheng et al., 2023, ICLR, arXiv 2302.13406): learnt matrices after each layer, near what is deleted alone.

    h_v <- h_v W_k   after layer k, for v at most k edges from an end of a deleted one; W_k square
    loss_k = alpha * MSE( h_k of the ends of deleted edges ; h_k before of the ends of as many random unlinked pairs )
           + (1 - alpha) * MSE( h_k of the other nodes near ; h_k before )

The network's own weights stay, and each loss trains its own layer's matrix (`both_layerwise` of the authors' code).
"Before" is the trained network over the graph that is left, as there. The pairs are drawn once. Published: alpha 0.5,
Adam at 1e-3, weight decay 5e-4, 3,000 epochs, of which the best is chosen on records (here: the last), and matrices of
1/1000 everywhere at first. An edge deletes itself, a node all of its edges: a node that is gone has no state, so its
neighbours' are moved. The result holds which nodes are near what was deleted. Only for graph networks.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Literal, Self, cast

import torch
from torch.nn.functional import mse_loss

from expunge.core.method import WeightMethod
from expunge.core.model import Model, Network
from expunge.core.request import Request
from expunge.errors import RunFailed, UsageRefused
from expunge.events import Note, OnEvent
from expunge.internals.graphs import Graph, MessagePassing, Placed
from expunge.notation.recipes import Recipe
from expunge.primitives.settings import check_seed

if TYPE_CHECKING:
    from jaxtyping import Bool, Float, Int
    from torch import Tensor

PUBLISHED = Recipe(
    "GNNDelete",
    "graph",
    "GNNDelete(alpha=0.5, steps=3000, learning_rate=0.001, weight_decay=0.0005, start='constant')",
    "Cheng et al., 2023, and the authors' code: 3,000 epochs at 1e-3. The last is taken, not the best on records.",
)


@dataclass(frozen=True)
class GNNDelete(WeightMethod):
    """Deletion operators for the neighbourhood of what is deleted."""

    alpha: float = 0.5
    """Weight of the deleted edges' loss, from 0 to 1; the rest is that of the nodes around them."""
    steps: int = 500
    """Steps of Adam, each over all of the neighbourhood."""
    learning_rate: float = 1e-3
    """Step size."""
    weight_decay: float = 5e-4
    """Added to the gradient, as torch's Adam does."""
    start: Literal["identity", "constant"] = "identity"
    """What the matrices are at first: constant is 1/1000 everywhere, as published."""
    seed: int = 0
    """Draws the pairs."""

    def __post_init__(self) -> None:
        check_seed(self)
        positive = self.steps >= 1 and 0 < self.learning_rate < math.inf and 0 <= self.weight_decay < math.inf
        if not positive or not 0 <= self.alpha <= 1 or self.start not in ("identity", "constant"):
            raise UsageRefused(
                f"GNNDelete: alpha is from 0 to 1, steps at least 1, learning_rate positive, weight_decay at least 0, "
                f"start identity or constant. Got {self!r}."
            )

    def with_seed(self, seed: int) -> Self:
        return replace(self, seed=seed)

    def change(self, network: Network, request: Request, on_event: OnEvent) -> Model:
        module = network.module
        if not isinstance(module, MessagePassing) or not all(isinstance(each, Placed) for each in request.forget):
            raise UsageRefused(f"GNNDelete is for graph networks, and {type(network).__name__} is none. Use another.")
        graph = module.graph
        ends = _find_deleted_ends(cast("Sequence[Placed]", request.forget), graph)
        with torch.no_grad():
            before = module.embed()
        regions = torch.stack([graph.near(graph.ids[ends].tolist(), number) for number in range(1, len(before) + 1)])
        made, matrices = module.add_operators(regions)
        if self.start == "constant":
            for matrix in matrices:
                matrix.data.fill_(1e-3)
        on_event(Note(f"Training {len(matrices)} matrices for {int(regions[-1].sum())} of {len(graph.ids)} nodes"))
        unlinked = graph.draw_unlinked(len(ends), self.seed)
        optimizer = torch.optim.Adam(matrices, lr=self.learning_rate, weight_decay=self.weight_decay)
        with torch.enable_grad():
            for _ in range(self.steps):
                losses = self.losses(made.embed(), before, regions, ends, unlinked)
                for matrix, loss in zip(matrices, losses, strict=True):
                    matrix.grad = torch.autograd.grad(loss, matrix, retain_graph=True)[0]
                optimizer.step()
        last = [loss.item() for loss in losses]
        if not all(map(math.isfinite, last)):
            raise RunFailed("GNNDelete: the loss is NaN or infinite. Lower learning_rate.")
        on_event(Note(f"Loss of each layer in the last step: {', '.join(f'{loss:.4g}' for loss in last)}"))
        return network.fork(made.requires_grad_(False))

    def losses(
        self,
        now: Sequence[Float[Tensor, "nodes _width"]],
        before: Sequence[Float[Tensor, "nodes _width"]],
        regions: Bool[Tensor, "layers nodes"],
        ends: Int[Tensor, " ends"],
        unlinked: Int[Tensor, " ends"],
    ) -> list[Float[Tensor, ""]]:
        """Each layer's loss."""
        others = regions.clone()
        others[:, ends] = False
        return [
            self.alpha * mse_loss(state[ends], was[unlinked])
            + (1 - self.alpha) * (mse_loss(state[near], was[near]) if near.any() else state.new_zeros(()))
            for state, was, near in zip(now, before, others, strict=True)
        ]


def _find_deleted_ends(forget: Sequence[Placed], graph: Graph) -> Int[Tensor, " ends"]:
    """Places of both ends of each deleted edge, as far as they are in the graph that is left."""
    pairs = [end for example in forget for pair in example.pairs for end in pair]
    rows = [row for example in forget for row in example.ends if example.nodes]
    heard = {(row[0].id, end) for row in rows for end in row[0].neighbours}
    places = graph.places([*pairs, *(end for _, end in sorted(heard))])
    if not bool((places >= 0).any()):
        raise UsageRefused("GNNDelete: nothing that is left was linked to what is deleted. Use another method.")
    return places[places >= 0]
