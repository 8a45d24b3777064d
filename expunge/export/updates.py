"""The update of a finished run, each layer's cut to a rank: from its adapter, or from the difference of weights."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Collection, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import nn
from transformers.pytorch_utils import Conv1D

from expunge.adapters._peft_adapter import updates
from expunge.core.model import Network
from expunge.errors import ModelRefused
from expunge.export.nearest import Factors, frobenius, nearest
from expunge.models.merging import insert_adapter
from expunge.models.stored import Stored

if TYPE_CHECKING:
    from jaxtyping import Float
    from torch import Tensor


@dataclass(frozen=True)
class Cut:
    """An update cut to a rank, and how much of it that lost."""

    layers: dict[str, Factors]
    """By the name of the layer; those that did not change are left out."""
    left_out: dict[str, float] = field(default_factory=dict)
    """Frobenius norms of the changes of tensors that a LoRA has no place for: embeddings, norms, biases."""

    @property
    def rank(self) -> int:
        """The rank of all layers: the largest."""
        return max(factors.a.shape[0] for factors in self.layers.values())

    @property
    def error(self) -> float:
        """Frobenius norm of what is lost over all tensors, as a share of the whole change's."""
        lost = [factors.lost for factors in self.layers.values()]
        whole = [factors.norm for factors in self.layers.values()]
        return math.hypot(*lost, *self.left_out.values()) / math.hypot(*whole, *self.left_out.values())

    @property
    def worst(self) -> tuple[str, float]:
        """The layer that loses the largest share of its update, and that share."""
        name = max(self.layers, key=lambda each: self.layers[each].error)
        return name, self.layers[name].error


def cut_adapter(base: Network, folder: Path, stored: Stored, rank: int) -> Cut:
    """The update of the adapter in `folder`, each layer's cut to `rank`.

    Raises `ModelRefused` where it changes anything but linear layers, such as fused experts.
    """
    layers: dict[str, Factors] = {}
    with torch.no_grad():
        for name, update in updates(insert_adapter(base.fork(), folder, stored)):
            if name not in linear_layers(base.module):
                raise ModelRefused(
                    f"{folder}: {name} is no linear layer of its own, and servers know no LoRA of it. "
                    f"Serve the merged model: expunge export RUN --hub-folder FOLDER."
                )
            if update.any():
                layers[name] = nearest(update, rank)
    return _refuse_empty(Cut(layers))


def cut_difference(base: Network, forgotten: Network, rank: int) -> Cut:
    """The difference of two networks' weights, each linear layer's cut to `rank`; what is in none is left out.

    Raises `ModelRefused` where the two have other tensors.
    """
    pairs = list(_differences(base.module, forgotten.module))
    linear, shared = linear_layers(base.module), _shared_weights(base.module)
    layers, left_out = {}, {}
    with torch.no_grad():
        for name, change in pairs:
            layer = name.removesuffix(".weight")
            if layer in linear and layer != name and name not in shared:
                layers[layer] = nearest(change.T if isinstance(linear[layer], Conv1D) else change, rank)
            else:
                left_out[name] = frobenius(change)
    return _refuse_empty(Cut(layers, left_out))


def linear_layers(module: Any) -> dict[str, nn.Module]:
    """The layers that a LoRA can be put beside, by name; GPT-2's have their weights [in, out]."""
    return {name: part for name, part in module.named_modules() if isinstance(part, nn.Linear | Conv1D)}


def _differences(before: Any, after: Any) -> Iterator[tuple[str, Float[Tensor, "..."]]]:
    was, now = dict(before.named_parameters()), dict(after.named_parameters())
    if {name: p.shape for name, p in was.items()} != {name: p.shape for name, p in now.items()}:
        raise ModelRefused("The result has other tensors than the base, so that no LoRA leads from one to the other.")
    for name, parameter in was.items():
        if not torch.equal(parameter, now[name]):
            yield name, now[name].detach() - parameter.detach()


def _shared_weights(module: Any) -> set[str]:
    """Names of weights that two layers have, such as an embedding that is the output matrix too."""
    every = list(module.named_parameters(remove_duplicate=False))
    count = Counter(id(parameter) for _, parameter in every)
    return {name for name, parameter in every if count[id(parameter)] > 1}


def _refuse_empty(cut: Cut) -> Cut:
    if not cut.layers and cut.left_out:
        raise ModelRefused(f"The run changed only {list_names(cut.left_out)}, which are in no linear layer.")
    if not cut.layers:
        raise ModelRefused("The run changed nothing, so that there is no update to export.")
    return cut


def list_names(names: Collection[str]) -> str:
    """The first three names, and how many more there are."""
    more = f" and {len(names) - 3} more" if len(names) > 3 else ""
    return f"{', '.join(list(names)[:3])}{more}"
