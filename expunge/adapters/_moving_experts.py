"""A trainable router, and a mixture's experts of which a few are trainable: modules that replace a mixture's own.

Frozen weights stay in the network's own storage. Only the slices of trainable experts are copied and get gradients, so
memory for the whole tensor [experts, ...] is not needed.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call


class MovingRouter(nn.Module):
    """A router with its own copy of the weights."""

    def __init__(self, base: nn.Module) -> None:
        super().__init__()
        self.base = base
        for name, parameter in base.named_parameters(recurse=False):
            self.register_parameter(name, _moving(parameter.detach()))

    def forward(self, *inputs: Tensor) -> Any:
        was = dict(self.base.named_parameters(recurse=False))
        now = dict(self.named_parameters(recurse=False))
        # In the network's precision: before the first step the answers are the same to the bit.
        return functional_call(self.base, {name: now[name].to(was[name].dtype) for name in was}, inputs)

    def pairs(self) -> Iterator[tuple[str, nn.Parameter, Tensor]]:
        """Name, weight before and weight now."""
        now = dict(self.named_parameters(recurse=False))
        yield from ((name, was, now[name]) for name, was in self.base.named_parameters(recurse=False))


class MovingExperts(nn.Module):
    """A mixture's experts, of which those numbered `moving` have their own copy of the weights."""

    def __init__(self, base: nn.Module, moving: tuple[int, ...]) -> None:
        super().__init__()
        self.base = base
        self.moving = moving
        # A mixture of the trainable experts alone: the same class on slices of its tensors, whatever their layout.
        slices = {id(p): _moving(p.detach()[list(moving)]) for p in base.parameters()}
        own: Any = copy.deepcopy(base, slices)
        own.num_experts = len(moving)
        self.own: Any = own

    def forward(self, states: Tensor, indices: Tensor, weights: Tensor) -> Tensor:
        theirs = torch.stack([indices == number for number in self.moving], -1)
        mine = theirs.any(-1)
        rest: Tensor = self.base(states, indices, weights.masked_fill(mine, 0))
        token, place = mine.nonzero(as_tuple=True)
        dtypes = {name: parameter.dtype for name, parameter in self.base.named_parameters()}
        now = {name: parameter.to(dtypes[name]) for name, parameter in self.own.named_parameters()}
        if not len(token):  # a gradient of zeros: all ranks must take part in its all-reduce
            none: Tensor = rest + 0 * sum(parameter.flatten()[0] for parameter in now.values())
            return none
        inputs = (states[token], theirs.int().argmax(-1)[token, place, None], weights[token, place, None])
        output: Tensor = functional_call(self.own, now, inputs)
        return rest.index_add(0, token, output.to(rest.dtype))

    def pairs(self) -> Iterator[tuple[str, nn.Parameter, Tensor]]:
        """Name, the whole tensor before, and what it is now."""
        now = dict(self.own.named_parameters())
        for name, was in self.base.named_parameters():
            whole = was.detach().clone()
            whole[list(self.moving)] = now[name].detach().to(was.dtype)
            yield name, was, whole

    def changes(self) -> Iterator[tuple[str, Tensor]]:
        """Name of each tensor, and the change of its trainable experts, flattened to two dimensions."""
        now = dict(self.own.named_parameters())
        for name, was in self.base.named_parameters():
            yield name, (now[name].detach() - was.detach()[list(self.moving)]).flatten(0, -2)


def _moving(values: Tensor) -> nn.Parameter:
    """A trainable copy, in float32 at least: a small step is lost in bfloat16's rounding."""
    return nn.Parameter(values.clone() if values.dtype == torch.float64 else values.float().clone())
