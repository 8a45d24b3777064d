"""The loss of a linear layer on fixed features, which is convex: its slope, its curvature, and Newton's step.

    L(W) = mean over rows of CE(W phi, y) + l2 / 2 |W|^2,   rows counted by their weights

All in float64. The Hessian is never formed: conjugate gradients need its products alone.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

from expunge.errors import RunFailed

if TYPE_CHECKING:
    from jaxtyping import Float, Int

SMALL = 1e-9
"""A slope so small, beside that of all weights at zero, is none."""
PRODUCTS = 1000
"""Most products with the Hessian for one step."""
HALVINGS = 20
ENTRIES = 2**24
"""Class scores that are held at once."""


@dataclass(frozen=True)
class ConvexHead:
    """The loss of a linear layer on fixed features, in float64."""

    features: Float[Tensor, "rows width"]
    labels: Int[Tensor, " rows"]
    shares: Float[Tensor, " rows"]
    """How much each row counts in the mean: together 1."""
    penalty: Float[Tensor, " width"]
    """The l2 of each column of the weights; 0 for biases, which stand beside features of one."""

    def _parts(self, classes: int) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
        size = max(1, ENTRIES // classes)
        return zip(self.features.split(size), self.labels.split(size), self.shares.split(size), strict=True)

    def loss(self, at: Float[Tensor, "classes width"]) -> float:
        """In nats."""
        total = sum(float(s @ cross_entropy(x @ at.T, y, reduction="none")) for x, y, s in self._parts(len(at)))
        return total + float((self.penalty * at.square()).sum()) / 2

    def slope(self, at: Float[Tensor, "classes width"]) -> Float[Tensor, "classes width"]:
        """The gradient."""
        made = self.penalty * at
        for x, y, share in self._parts(len(at)):
            wrong = (x @ at.T).softmax(1)
            wrong[torch.arange(len(y), device=y.device), y] -= 1
            made = made + (share[:, None] * wrong).T @ x
        return made

    def curvature(self, at: Float[Tensor, "classes width"]) -> Callable[[Tensor], Tensor]:
        """The product of the Hessian with a direction."""

        def product(v: Tensor) -> Tensor:
            made = self.penalty * v
            for x, _, share in self._parts(len(at)):
                p, moved = (x @ at.T).softmax(1), x @ v.T
                bent = p * (moved - (p * moved).sum(1, keepdim=True))
                made = made + (share[:, None] * bent).T @ x
            return made

        return product

    def step(self, at: Float[Tensor, "classes width"]) -> Float[Tensor, "classes width"]:
        """One of Newton's; halved until the loss does not rise, which near the minimum it never does."""
        slope = self.slope(at)
        if at.device.type == "meta":  # a plan: how many products it takes, the numbers decide
            return at - self.curvature(at)(slope)
        if not slope.isfinite().all():
            raise RunFailed("The last layer's loss has no finite slope. Check the model's weights.")
        if slope.norm() <= SMALL * self.slope(torch.zeros_like(at)).norm():
            return at
        move, before = _solve(self.curvature(at), slope), self.loss(at)
        for _ in range(HALVINGS):
            if self.loss(at - move) <= before:
                return at - move
            move = move / 2
        return at


def _solve(product: Callable[[Tensor], Tensor], right: Tensor) -> Tensor:
    """Conjugate gradients: the direction whose product with the Hessian is `right`."""
    made, rest = torch.zeros_like(right), right.clone()
    search, size = rest.clone(), float(rest.square().sum())
    enough = (SMALL**2) * size
    for _ in range(PRODUCTS):
        bent = product(search)
        length = size / float((search * bent).sum())
        made, rest = made + length * search, rest - length * bent
        now = float(rest.square().sum())
        if now <= enough:
            break
        search, size = rest + (now / size) * search, now
    return made
