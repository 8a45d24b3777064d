"""Train only the layer that computes the class scores; all layers below it are frozen.

    W' = W + D,  b' = b + d,   D and d zero at the start

The layer is the output embedding of a language model, which is untied from the input embedding where the two are
tied, and else the last linear layer with as many outputs as the model has classes. Training it changes answers and
nothing else: the hidden states are the original's, bit for bit, so a probe still finds everything in them, and a few
steps on the forgotten examples bring the answers back. It is removal at the output and should be called that.
"""

import copy
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from expunge.adapters._layers import output_layer
from expunge.core.adapter import Adapter
from expunge.core.model import Network
from expunge.core.request import Request

if TYPE_CHECKING:
    from jaxtyping import Float


@dataclass(frozen=True)
class LastLayer(Adapter):
    """The output matrix and its bias, in float32."""

    def check(self, network: Network) -> None:
        output_layer(network)

    def insert(self, network: Network, request: Request) -> Network:
        fork = network.fork()
        fork.module.requires_grad_(False)
        _, layer = output_layer(fork)
        for name, value in dict(layer.named_parameters(recurse=False)).items():
            parametrize.register_parametrization(layer, name, _Moved(value))
        return fork

    def merge(self, adapted: Network) -> Network:
        module = copy.deepcopy(adapted.module)
        name, layer = output_layer(adapted.fork(module))
        # A new layer in its place: torch's own removal would change the class, which copies of the layer share.
        plain = nn.Linear(layer.in_features, layer.out_features, layer.bias is not None, device="meta")
        for each in dict(plain.named_parameters()):
            setattr(plain, each, nn.Parameter(getattr(layer, each).detach().clone(), requires_grad=False))
        module.set_submodule(name, plain.train(layer.training))
        _untie(module)
        return adapted.fork(module)

    def deltas(self, adapted: Network, before: Network) -> "Iterator[tuple[str, Float[Tensor, 'out in']]]":
        name, layer = output_layer(adapted)
        parametrizations: Any = layer.parametrizations
        yield name, parametrizations["weight"][0].delta.detach()

    def save(self, adapted: Network, folder: Path) -> None:
        """Does nothing: the result is the whole network."""


class _Moved(nn.Module):
    """A parametrization: a tensor plus a trainable difference."""

    def __init__(self, value: Tensor) -> None:
        super().__init__()
        self.delta = nn.Parameter(torch.zeros_like(value, dtype=torch.promote_types(value.dtype, torch.float32)))

    def forward(self, value: Tensor) -> Tensor:
        return (value + self.delta).to(value.dtype)


def _untie(module: Any) -> None:
    """Set `tie_word_embeddings` to False; else only one of the two embeddings would be saved."""
    if getattr(module.config, "tie_word_embeddings", False):
        module.config.tie_word_embeddings = False
