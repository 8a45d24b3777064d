"""Router anchor (SEUF, Zhuang et al., 2025, ACL, arXiv 2411.18797): keep routing to the expert that is trained to
forget.

    loss = mean over forget examples of the mean over their tokens of  || s_t - a ||^2

s_t is the softmax of the router over all experts of its block (the paper does not tell whether before or after the cut
to the top K; this way every expert has a gradient), a is 1 at the expert and 0 elsewhere. Without it the
forget loss can fall because tokens are routed to experts without that knowledge.

The expert is the one that `SEUF` trains; with an adapter that trains all experts, the one with the highest affinity in
the original model (see `SEUF`); with several, each has an equal share of a. Reads all tokens but an example's last, in
a
forward pass of its own that stops at the router. Weight 1 was published, and 0 to 1000 made little difference there:
`GradDiff() + Anchor()`. Needs a mixture of experts. Meant as retention.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

from expunge.core.model import Network
from expunge.core.objective import Objective, Scalar
from expunge.core.question import Routes
from expunge.core.view import View
from expunge.errors import UsageRefused
from expunge.internals.mixtures import affinity, first_tokens, the_mixtures


@dataclass(frozen=True)
class Anchor(Objective):
    """Keep the forget set's tokens routed to the expert that is trained to forget them."""

    needs: ClassVar = ("forget", "reference", "experts")
    intention: ClassVar = "retention"

    tokens: int = 100_000
    """Tokens of the forget set that the affinity is read on, where the adapter does not determine the expert."""

    def __post_init__(self) -> None:
        if self.tokens < 1:
            raise UsageRefused(f"The `tokens` of Anchor must be at least 1. Got {self.tokens!r}.")

    def __call__(self, now: View, before: View) -> Scalar:
        layer, experts = self._at(now, before)
        routes = now.router_scores("forget", layer)
        probabilities = routes.states[:, 0]
        aim = probabilities.new_zeros(probabilities.shape[-1])
        aim[list(experts)] = 1 / len(experts)
        return routes.over_examples(routes.mean((probabilities - aim).square().sum(-1)))

    def _at(self, now: View, before: View) -> tuple[int, tuple[int, ...]]:
        """The block and its experts; the same at every step."""
        known: Any = now.run.memory.get(repr(self))
        if known is None:
            layer, experts = self._moving(now) or self._most_used(before)
            known = now.run.memory[repr(self)] = {"layer": layer, **{f"expert {n}": e for n, e in enumerate(experts)}}
        return known["layer"], tuple(value for key, value in known.items() if key != "layer")

    def _most_used(self, before: View) -> tuple[int, tuple[int, ...]]:
        """The expert with the highest affinity in the original model."""
        examples = first_tokens(before.run.whole.get("forget") or before.batch("forget"), self.tokens)
        return affinity(before.every(Routes(), "forget", examples)).top()

    def _moving(self, now: View) -> tuple[int, tuple[int, ...]] | None:
        """The experts that the adapter trains; None where it trains all."""
        if not isinstance(now.model, Network):
            return None
        found = the_mixtures(now.model.module)
        return next(((number, mixture.moving) for number, mixture in found.items() if mixture.moving), None)
