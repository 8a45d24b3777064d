"""One expert of a mixture and its router (SEUF, Zhuang et al., 2025, ACL, arXiv 2411.18797; first UOE).

    a_i = (1/Z) sum_j (1/L_j) sum_t g_it,   g_it the router's probability of expert i at token t if in its top K, else 0

is worked out for every expert of every block on the Z examples of the forget set, of L_j tokens; the expert with the
highest a_i in the whole network, and the router of its block, are trained, and nothing else: neither shared experts nor
attention. With other methods routers drift to unrelated experts, whose forgetting harms what should be retained.
`Anchor` holds the router at the expert. The premise is that routing is specialised: look at `affinity` first.

Takes any forget objective: `Finetune(objective=GradDiff() + Anchor(), adapter=SEUF(), learning_rate=1e-4)`. The
published settings are learning rate 1e-4 with batches of 16, retain weight 1, anchor weight 1, NPO with beta 0.001.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from expunge.adapters._moving_experts import MovingExperts, MovingRouter
from expunge.core.adapter import Adapter
from expunge.errors import UsageRefused
from expunge.internals.mixtures import Mixture, affinity, first_tokens, mixtures, read_routes, the_mixtures
from expunge.notation.recipes import ALL_STEPS, Recipe

if TYPE_CHECKING:
    from jaxtyping import Float
    from torch import Tensor

    from expunge.core.model import Network
    from expunge.core.request import Request


PUBLISHED = Recipe(
    "SEUF",
    "language",
    "Finetune(objective=GradDiff(forget_weight=1.0) + Anchor(), adapter=SEUF(), "
    f"learning_rate=0.0001, steps=Epochs(count=10.0), batch=16, retain_batch=16, {ALL_STEPS})",
    "Zhuang et al., 2025: GradDiff, anchor weight 1, batches of 16 at 1e-4. Its length was not "
    "found: 10 epochs. For mixtures of experts.",
)


@dataclass(frozen=True)
class SEUF(Adapter):
    """The expert that the forget set is routed to most, and its router."""

    experts: int = 1
    """Number of trainable experts, all of one block; 1 was found best."""
    layer: int | None = None
    """Block, from 0, whose experts are trained; None: that of the expert with the highest affinity."""
    expert: int | None = None
    """The only expert of `layer` to train, such as a random one as a control; None: by affinity."""
    tokens: int = 100_000
    """Tokens of the forget set, from its start, that the affinity is computed on; so many are enough."""

    def __post_init__(self) -> None:
        if self.experts < 1 or self.tokens < 1:
            raise UsageRefused(
                f"SEUF: experts and tokens must be at least 1. Got {self.experts!r} and {self.tokens!r}."
            )
        if self.expert is not None and (self.layer is None or self.experts != 1):
            raise UsageRefused("SEUF: an `expert` is one of a `layer`. Give that too, and leave `experts` at 1.")

    def check(self, network: Network) -> None:
        the_mixtures(network.module)

    def insert(self, network: Network, request: Request) -> Network:
        found = the_mixtures(network.module)
        if network.device.type == "meta":  # the cost depends on the routing, which needs real weights
            raise UsageRefused("SEUF cannot be planned: how many tokens its expert reads depends on the routing.")
        layer, moving = self._choose(network, request, found)
        fork = network.fork()
        fork.module.requires_grad_(False)
        at = mixtures(fork.module)[layer]
        setattr(at.module, at.router, MovingRouter(at.gate))
        at.module.experts = MovingExperts(at.experts, moving)
        return fork.fork(fork.module.eval())

    def merge(self, adapted: Network) -> Network:
        fork = adapted.fork()
        at, router, experts = _adapted_mixture(fork)
        parts: dict[str, MovingRouter | MovingExperts] = {at.router: router, "experts": experts}
        for name, part in parts.items():
            for _, was, now in part.pairs():
                was.data = now.detach().to(was.dtype, copy=True)
            setattr(at.module, name, part.base)
        fork.module.requires_grad_(False)
        return fork

    def deltas(self, adapted: Network, before: Network) -> Iterator[tuple[str, Float[Tensor, "out in"]]]:
        at, router, experts = _adapted_mixture(adapted)
        for name, change in experts.changes():
            yield f"{at.name}.experts.{name}", change
        for name, was, now in router.pairs():
            if was.dim() == 2:
                yield f"{at.name}.{at.router}.{name}".removesuffix(".weight"), (now - was).detach()

    def save(self, adapted: Network, folder: Path) -> None:
        """Does nothing: peft has no form for single experts, so the result is the whole network."""

    def _choose(self, network: Network, request: Request, found: dict[int, Mixture]) -> tuple[int, tuple[int, ...]]:
        """The block, and its experts to train."""
        if self.layer is not None and self.layer not in found:
            raise UsageRefused(
                f"SEUF: `layer` must be a block with experts: {', '.join(map(str, found))}. Got {self.layer!r}."
            )
        count = min(mixture.count for mixture in found.values())
        if self.experts > count or (self.expert or 0) not in range(count):
            raise UsageRefused(f"SEUF: there are {count} experts a block. Got {self!r}.")
        if self.layer is not None and self.expert is not None:
            return self.layer, (self.expert,)
        with torch.no_grad():
            return affinity(read_routes(network, first_tokens(request.forget, self.tokens))).top(
                self.experts, self.layer
            )


def _adapted_mixture(network: Network) -> tuple[Mixture, MovingRouter, MovingExperts]:
    """The mixture with trainable experts; its router and its experts."""
    at = next(mixture for mixture in mixtures(network.module).values() if mixture.moving)
    router, experts = at.gate, at.experts
    assert isinstance(router, MovingRouter)
    assert isinstance(experts, MovingExperts)
    return at, router, experts
