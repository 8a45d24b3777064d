"""Mixtures of experts, found by structure and not by names: their routers, and which experts a text is routed to.

A mixture is a module with a child `experts`, whose matrices are slices of one tensor [experts, ...], and a router with
a
weight [experts, width] that returns `(scores, weights, indices)` for each token. Shared experts, which read every
token,
are not among a mixture's experts. `routers` finds routers of any form, `experts_of` experts of any form.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from expunge.core.predictions import RouterScores
from expunge.core.question import Routes
from expunge.errors import ModelRefused
from expunge.internals.blocks import blocks, is_linear, mixers, stacks_of, within

if TYPE_CHECKING:
    from jaxtyping import Float

    from expunge.core.model import Batch, Model


@dataclass(frozen=True)
class Mixture:
    """The experts of one block and their router."""

    name: str
    """Name of the module that contains both."""
    router: str
    """Name of the router in it."""
    module: nn.Module

    @property
    def experts(self) -> nn.Module:
        """The module of all experts."""
        return self.module.get_submodule("experts")

    @property
    def gate(self) -> nn.Module:
        """The router."""
        return self.module.get_submodule(self.router)

    @property
    def count(self) -> int:
        """How many experts there are."""
        return _count(self.experts)

    @property
    def moving(self) -> tuple[int, ...]:
        """The experts that an adapter made trainable; empty without such an adapter."""
        return tuple(getattr(self.experts, "moving", ()))


@dataclass(frozen=True)
class Affinity:
    """How strongly examples are routed to each expert: the mean over examples of the mean over their tokens."""

    layers: tuple[int, ...]
    gates: Float[Tensor, "layers experts"]
    """Of the router's probability where the expert is among the top K, and 0 elsewhere: what experts are ranked by."""
    shares: Float[Tensor, "layers experts"]
    """Share of tokens that are routed to the expert: K / experts where all are used equally."""

    def top(self, count: int = 1, layer: int | None = None) -> tuple[int, tuple[int, ...]]:
        """The `count` experts with the highest affinity of the block that holds the highest (or of `layer`)."""
        at = int(self.gates.max(1).values.argmax()) if layer is None else self.layers.index(layer)
        best = self.gates[at].topk(count).indices.tolist()
        return self.layers[at], tuple(best)


def mixtures(module: nn.Module, part: str | None = None) -> dict[int, Mixture]:
    """The mixtures by the number of their block, from 0; none in a dense model. `part`: of which tower."""
    found: dict[int, Mixture] = {}
    for number, (block_name, block) in enumerate(blocks(module, part).items()):
        for name, inner in block.named_modules():
            router = _router(inner)
            if router and number not in found:
                found[number] = Mixture(f"{block_name}.{name}" if name else block_name, router, inner)
    return found


def experts_of(block: nn.Module) -> dict[str, nn.Module]:
    """The fused experts of a block, stacks of matrices [experts, ...], by name in the block. Experts that are modules
    of
    their own are ordinary linear layers and are not among them."""
    found: dict[str, nn.Module] = {}
    apart = mixers(block)
    for name, part in block.named_modules():
        key = name.rpartition(".")[2]
        deep = within(name, (*apart, *found))
        if not deep and (
            _is_unnamed_stack(key, part) or (key == "experts" and not any(map(is_linear, part.modules())))
        ):
            found[name] = part
    return found


def routers(block: nn.Module) -> list[str]:
    """Names of a block's routers, and of gates that weigh its shared experts."""
    found: list[str] = []
    for name, part in block.named_modules():
        children = dict(part.named_children())
        experts = children.get("experts", part)
        count = len(experts) if isinstance(experts, nn.ModuleList) else _count(experts)
        for key, child in children.items():
            beside = "experts" in children and key != "experts"
            says_so = "router" in key.lower() or "Router" in type(child).__name__
            if says_so or (beside and (key.endswith("gate") or (count and _rows(child) == count))):
                found.append(f"{name}.{key}" if name else key)
    return found


def the_mixtures(module: nn.Module) -> dict[int, Mixture]:
    """The mixtures; raises `ModelRefused` where there are none."""
    found = mixtures(module)
    if not found:
        raise ModelRefused(
            f"{type(module).__name__} has no experts with a router: it is no mixture of experts, or has them in "
            f"another form than transformers' Mixtral, OLMoE and Qwen-MoE do. Use adapter=Bounded() or Full(), and "
            f"no Anchor()."
        )
    return found


def affinity(read: Iterable[RouterScores]) -> Affinity:
    """Expert attribution (UOE, Zhuang et al., 2024): a_i = (1/Z) sum_j (1/L_j) sum_t g_it, batch after batch."""
    gates, shares, examples = torch.zeros(()), torch.zeros(()), 0.0
    layers: tuple[int, ...] = ()
    for routes in read:
        each = routes.each_weight() / routes.counts().clamp(min=1)
        weight = each[routes.example].to(routes.states.dtype)[:, None, None]
        gates = gates + (routes.states * routes.taken * weight).sum(0).cpu().double()
        shares = shares + (routes.taken * weight).sum(0).cpu().double()
        examples, layers = examples + float(routes.each_weight().sum()), routes.layers
    return Affinity(layers, gates / examples, shares / examples)


def first_tokens(examples: Batch, tokens: int) -> Batch:
    """The first examples, of about so many tokens together."""
    ends = torch.cumsum(torch.tensor([example.size for example in examples]), 0)
    return examples[: int((ends < tokens).sum()) + 1]


def read_routes(model: Model, examples: Batch) -> Iterator[RouterScores]:
    """Router probabilities of all blocks on `examples`, batch by batch, without gradients."""
    for group in model.batches(examples):
        with torch.no_grad():
            yield model.ask(Routes(), [examples[k] for k in group]).detach()


def _router(part: nn.Module) -> str:
    """Name of the child that is the router of the experts beside it; empty where there is none."""
    children = dict(part.named_children())
    count = _count(children["experts"]) if "experts" in children else 0
    for name, child in children.items():
        if count and name != "experts" and _rows(child) == count:
            return name
    return ""


def _rows(part: nn.Module) -> int:
    """Rows of a module's own weight matrix; 0 where it has none."""
    weight = getattr(part, "weight", None)
    return len(weight) if isinstance(weight, Tensor) and weight.dim() == 2 else 0


def _is_unnamed_stack(key: str, part: nn.Module) -> bool:
    """Whether a module is a stack of all experts' matrices that is not in a child `experts` (JetMoE)."""
    return "shared" not in key and type(part).__name__.endswith("Experts") and bool(stacks_of(part))


def _count(experts: nn.Module) -> int:
    stacked = [len(parameter) for parameter in experts.parameters() if parameter.dim() == 3]
    return stacked[0] if stacked else 0
