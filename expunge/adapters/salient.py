"""The weight mask of SalUn (Fan et al., 2024, ICLR, arXiv 2310.12508): train weights with large forget gradients only.

    mask_i = 1 where |d CE(forget) / d theta_i| is above the `quantile` over all weights,   computed once, on the
    original
    theta  = mask * theta_trained + (1 - mask) * theta_original

It replaces `Full()`, and works with any objective; the paper's is `RandomLabel() + RetainNLL()`. The trainable
parameters are lists of the selected weights alone, so neither momentum nor weight decay ever changes another one, and
the optimizer holds no state for it. There is one threshold for all tensors, so some may be frozen entirely. A weight
without any gradient is never selected, so fewer than the share may be trained (unused rows of a vocabulary, say).
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor
from torch.nn.utils import parametrize

from expunge.core.adapter import Adapter
from expunge.errors import ModelRefused, UsageRefused
from expunge.internals.gradients import HALF, gradient, loss
from expunge.notation.recipes import CIFAR, Recipe

if TYPE_CHECKING:
    from jaxtyping import Bool, Float

    from expunge.core.model import Network
    from expunge.core.request import Request


PUBLISHED = Recipe(
    "SalUn",
    "vision",
    "Finetune(objective=RandomLabel() + RetainNLL(), adapter=Salient(quantile=0.5), "
    f"learning_rate=0.01, steps=Epochs(count=10.0), {CIFAR})",
    "Fan et al., 2024: half of the weights, random labels, SGD for 10 epochs in batches of 256; the "
    "rate is their code's default (0.01). There the passes through the two sets alternate; here each "
    "step reads both.",
    "SalUn (Fan et al., 2024, ICLR, arXiv 2310.12508): random labels, in the weights with large forget gradients only.",
)


@dataclass(frozen=True)
class Salient(Adapter):
    """The weights with the largest gradient on the forget set, in float32 at least."""

    quantile: float = 0.5
    """Share of all weights, smallest gradient first, that is frozen; the paper's is the median."""

    def __post_init__(self) -> None:
        if not 0 <= self.quantile < 1:
            raise UsageRefused(f"The `quantile` of Salient must lie in [0, 1). Got {self.quantile!r}.")

    def insert(self, network: Network, request: Request) -> Network:
        if network.device.type == "meta":
            raise UsageRefused(
                "Salient selects weights by their gradients, which a plan does not have. Plan with adapter=Full(), "
                "which needs more."
            )
        masks = self.masks(network, request)
        fork = network.fork()
        if next(fork.module.parameters()).dtype in HALF:
            fork.module.float()  # a step of 1e-5 is lost in bfloat16's rounding for most weights
        fork.module.requires_grad_(False)
        places = _places(fork.module)
        for name, mask in masks.items():
            owners = places[name]
            holder, first = owners[0]
            values = _Chosen(getattr(holder, first).detach(), mask)
            for owner, key in owners:  # more than one where weights are tied
                owner.__dict__.setdefault("order", list(owner._parameters))
                parametrize.register_parametrization(owner, key, values)
        return fork.fork(fork.module.eval())

    def masks(self, network: Network, request: Request) -> dict[str, Bool[Tensor, " ..."]]:
        """The mask of each parameter; parameters without a selected weight are left out."""
        sizes = {name: slope.abs() for name, slope in gradient(network, loss, (1.0, request.forget)).items()}
        every = torch.cat([size.flatten() for size in sizes.values()])
        still = int(self.quantile * len(every))
        least = every.kthvalue(still).values if still else every.new_tensor(-1.0)
        del every
        masks = {name: (size > least) & (size > 0) for name, size in sizes.items()}
        found = {name: mask for name, mask in masks.items() if mask.any()}
        if not found:
            raise ModelRefused("No weight has a gradient on the forget set, so none is salient. Use adapter=Full().")
        return found

    def merge(self, adapted: Network) -> Network:
        fork = adapted.fork()
        written: dict[int, nn.Parameter] = {}
        for owner in list(fork.module.modules()):
            if isinstance(getattr(owner, "parametrizations", None), nn.ModuleDict):
                _plain(owner, written)
        fork.module.requires_grad_(False)
        return fork

    def deltas(self, adapted: Network, before: Network) -> Iterator[tuple[str, Float[Tensor, "out in"]]]:
        for name, was in before.module.named_parameters():
            at, _, key = name.rpartition(".")
            owner = adapted.module.get_submodule(at)
            if was.dim() >= 2 and parametrize.is_parametrized(owner, key):
                yield name.removesuffix(".weight"), (getattr(owner, key).detach() - was.detach()).flatten(1)

    def save(self, adapted: Network, folder: Path) -> None:
        """Does nothing: the result is the whole network."""


class _Chosen(nn.Module):
    """A parametrization: a tensor of which some entries are trainable."""

    mask: Tensor

    def __init__(self, value: Tensor, mask: Bool[Tensor, " ..."]) -> None:
        super().__init__()
        self.register_buffer("mask", mask, persistent=False)
        self.values = nn.Parameter(value[mask])

    def forward(self, value: Tensor) -> Tensor:
        if isinstance(value, DTensor):  # sharded, outside of its block's forward: only its type is read
            return value
        return value.masked_scatter(self.mask, self.values)


def _places(module: nn.Module) -> dict[str, list[tuple[nn.Module, str]]]:
    """For each parameter the modules that hold it, with its name there; several where it is tied."""
    owners: dict[int, list[tuple[nn.Module, str]]] = {}
    for part in module.modules():
        for key, parameter in part._parameters.items():
            owners.setdefault(id(parameter), []).append((part, key))
    return {name: owners[id(parameter)] for name, parameter in module.named_parameters()}


def _plain(owner: Any, written: dict[int, nn.Parameter]) -> None:
    """Remove the parametrizations of a module, with its current weights; tied ones stay tied.

    Done by hand: torch's own removal deletes a property of the class, which copies of the module share.
    """
    now = {}
    for key, parts in owner.parametrizations.items():
        chosen = id(parts[0])
        if chosen not in written:
            written[chosen] = nn.Parameter(getattr(owner, key).detach(), requires_grad=False)
        now[key] = written[chosen]
    order = owner.order
    del owner.order
    owner.__class__ = type(owner).__bases__[0]
    del owner._modules["parametrizations"]
    owner._parameters.update(now)
    owner._parameters = {key: owner._parameters[key] for key in order}
