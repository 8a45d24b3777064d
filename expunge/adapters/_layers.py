"""Which layers of a network are its MLP layers and which its attention, found by structure and not by names.

Of a block's linear layers (see `internals/blocks.py`), those inside a token mixer count as attention: attention
itself, and what replaces it in hybrid and state-space models, such as Mamba's mixer, linear attention or a short
convolution. The others are the MLP's. A mixture's experts belong to the MLP too, also where they are slices of one
tensor. Where no block has an MLP its mixers are taken for it: Mamba's is a gated MLP and a mixer in one (Gu and Dao,
2023, arXiv 2312.00752, section 3.4).

Never adapted are routers, gates with one output, modules of the residual stream, and layers whose weight is used
without calling them, as Mamba's kernels use `out_proj.weight`: an adapter there would have no effect, or not on every
code path.
"""

from __future__ import annotations

import inspect
import re
from collections import Counter
from collections.abc import Sequence
from functools import cache
from typing import Any, Literal

import torch
from torch import nn

from expunge.core.model import Network
from expunge.errors import ModelRefused, UsageRefused
from expunge.internals.blocks import Blocks, blocks, every_block, is_linear, mixers, within
from expunge.internals.mixtures import experts_of, routers

DTYPES = (torch.float64, torch.float32, torch.bfloat16, torch.float16)
"""Types of weights that can be adapted."""
Kind = Literal["mlp", "attention"]
Targets = Literal["mlp", "attention", "all"]
RESIDUAL = ("AltUp", "GatedResidual", "HyperConnection", "Laurel")
"""Parts of the class names of modules that belong to the residual stream, not to MLP or attention."""
UNCALLED = re.compile(
    r"^(?!.*\b(?:isinstance|getattr|init)\b).*?\bself\.(\w+)\.weight\b(?!\.(?:dtype|device|shape|data)\b|\._|\[|\s*=)",
    re.MULTILINE,
)
"""In a module's source code: the weight of a child that is used without calling the child."""


def kinds(module: nn.Module, part: str | None = None) -> dict[str, Kind]:
    """Every linear layer and fused experts of every block, by name: whether it is the MLP's or attention's."""
    return _kinds_in(blocks(module, part))


def kinds_in_every_tower(module: nn.Module) -> dict[str, Kind]:
    """The same of the blocks of all towers."""
    return _kinds_in(every_block(module))


def stacks(module: nn.Module, part: str | None = None) -> dict[str, nn.Module]:
    """The fused experts of each block, whose matrices are slices of one tensor [experts, ...], by name."""
    return _stacks_in(blocks(module, part))


def _kinds_in(found: Blocks) -> dict[str, Kind]:
    kinds: dict[str, Kind] = {}
    for block_name, block in found.items():
        apart = mixers(block)
        for name, layer in block.named_modules():
            if is_linear(layer):
                kinds[f"{block_name}.{name}"] = "attention" if within(name, apart) else "mlp"
    return kinds | dict.fromkeys(_stacks_in(found), "mlp")


def _stacks_in(found: Blocks) -> dict[str, nn.Module]:
    return {
        f"{block_name}.{name}": experts
        for block_name, block in found.items()
        for name, experts in experts_of(block).items()
    }


def is_fused(experts: nn.Module) -> bool:
    """Whether experts use transformers' experts interface, which describes the layout of their tensors."""
    known = all(hasattr(experts, key) for key in ("has_gate", "has_bias", "is_transposed", "has_post_expert_norm"))
    if not known or getattr(experts, "_is_expert_parallel", False):
        return False
    names = ("gate_up_proj" if experts.has_gate else "up_proj", "down_proj")
    return all(getattr(experts, name).dim() == 3 and getattr(experts, name).dtype in DTYPES for name in names)


def choose_layers(
    module: nn.Module, targets: Targets, only: Sequence[int] | None = None, part: str | None = None
) -> list[str]:
    """Names of the linear layers to adapt, of the blocks `only` (from 0; None: all) of one tower.

    A block without such layers is skipped, as in hybrids whose blocks are either a mixer or an MLP; where no block has
    an MLP, its mixers stand for it. Raises `ModelRefused` where no block has any such layer, and where a block lacks
    them that is built like others that have them.
    """
    if targets not in ("mlp", "attention", "all"):
        raise UsageRefused(f"targets must be 'mlp', 'attention' or 'all'. Got {targets!r}.")
    names = list(blocks(module, part))
    if not names:
        raise ModelRefused(
            f"{type(module).__name__} has no transformer blocks, so no {targets} linear layers to adapt. "
            f"Use adapter=Full(), which trains every weight."
        )
    if targets != "attention":
        _refuse_unknown_experts(module, part)
    known, excluded = kinds(module, part), never_adapted(module, part)
    wanted = targets if targets != "mlp" or "mlp" in known.values() else "attention"
    layers = [name for name, kind in known.items() if wanted in ("all", kind) and not within(name, excluded)]
    _refuse_gaps(module, targets, names, layers)
    _refuse_tied(module, layers)
    if only is None:
        return layers
    if not only or not set(only) <= set(range(len(names))):
        raise UsageRefused(f"layers must be blocks, from 0 to {len(names) - 1}, or None for all. Got {only!r}.")
    some = {number: [layer for layer in layers if within(layer, [names[number]])] for number in sorted(set(only))}
    empty = [number for number, inside in some.items() if not inside]
    if empty:
        raise UsageRefused(f"layers: block {empty[0]} has no {targets} linear layer to adapt. Got {only!r}.")
    return [layer for layer in layers if any(layer in inside for inside in some.values())]


def never_adapted(module: nn.Module, part: str | None = None) -> dict[str, str]:
    """Layers that are never adapted, by name, and why: router, gate, residual, or read past (used without a call)."""
    found: dict[str, str] = {}
    for block_name, block in blocks(module, part).items():
        found |= {f"{block_name}.{name}": "router" for name in routers(block)}
        for name, layer in block.named_modules():
            if any(word in type(layer).__name__ for word in RESIDUAL):
                found[f"{block_name}.{name}"] = "residual"
            if isinstance(layer, nn.Linear) and layer.out_features == 1:  # no rank would be low for its update
                found.setdefault(f"{block_name}.{name}", "gate")
            for key in set(dict(layer.named_children())) & _uncalled_children(type(layer)):  # type: ignore[arg-type]  # mypy takes the __hash__ of instances for the class's
                if is_linear(layer.get_submodule(key)):
                    found.setdefault(f"{block_name}.{name}.{key}", "read past")
    return found


@cache
def _uncalled_children(kind: type[nn.Module]) -> frozenset[str]:
    """Names of the children whose weights a module's code uses without calling them."""
    ours = [each for each in kind.__mro__ if each.__module__.startswith("transformers.models.")]
    try:
        return frozenset(name for each in ours for name in UNCALLED.findall(inspect.getsource(each)))
    except OSError:  # installed without its source
        return frozenset()


def _refuse_unknown_experts(module: nn.Module, part: str | None) -> None:
    names = list(blocks(module, part))
    strange = [name for name, experts in stacks(module, part).items() if not is_fused(experts)]
    if strange:
        count = sum(bool(_inside(name, strange)) for name in names)
        raise ModelRefused(
            f"{type(module).__name__}: {count} of {len(names)} blocks have experts of a form that low-rank adapters do "
            f"not take: quantized, split over processes, or none of transformers' experts interface "
            f"(first: {strange[0]}). Use targets='attention', or adapter=Full()."
        )


def _refuse_gaps(module: nn.Module, targets: Targets, names: list[str], layers: list[str]) -> None:
    """Refuse a model without such layers, or a block that lacks them unlike others of its form."""
    if not layers:
        lack = {"mlp": "an MLP", "attention": "a token mixer", "all": "a linear layer"}[targets]
        other = {"mlp": "targets='attention' (whatever mixes tokens) or 'all'", "attention": "targets='mlp' or 'all'"}
        raise ModelRefused(
            f"{type(module).__name__}: none of its {len(names)} blocks has {lack} that could be adapted. "
            f"Use {other[targets] + ', or ' if targets in other else ''}adapter=Full()."
        )
    holders = {layer.removeprefix(f"{name}.").split(".")[0] for name in names for layer in _inside(name, layers)}
    bare = [name for name in names if not _inside(name, layers) and _lacks(module.get_submodule(name), holders)]
    if bare:
        raise ModelRefused(
            f"{type(module).__name__}: {len(bare)} of {len(names)} blocks have no {targets} linear layer where others "
            f"have them (first: {bare[0]}). Use targets='all', or adapter=Full()."
        )


def _refuse_tied(module: nn.Module, layers: list[str]) -> None:
    """Refuse layers with tied weights: after merging, each would have the updates of all."""
    owners = Counter(id(weight) for _, weight in module.named_parameters(remove_duplicate=False))
    tied = [name for name in layers if any(owners[id(p)] > 1 for p in module.get_submodule(name).parameters())]
    if tied:
        raise ModelRefused(
            f"{type(module).__name__}: {len(tied)} layers to adapt share their weights with other blocks "
            f"(first: {tied[0]}), so no block can have an update of its own. Use adapter=Full()."
        )


def _inside(block: str, layers: list[str]) -> list[str]:
    return [layer for layer in layers if layer.startswith(f"{block}.")]


def _lacks(block: nn.Module, holders: set[str]) -> bool:
    """Whether a block has a child by the name of one that holds such layers in other blocks, but without any."""
    return any(key in holders and not any(map(is_linear, part.modules())) for key, part in block.named_children())


def kind_of(parameter: str, known: dict[str, Kind]) -> str:
    """`mlp`, `attention` or `other`: where a parameter of an adapted network belongs."""
    name = parameter.removeprefix("base_model.model.")
    layers = name.split(".")
    for end in range(len(layers), 0, -1):
        kind = known.get(".".join(layers[:end]))
        if kind:
            return kind
    return "mlp" if "experts" in layers else "other"


def output_layer(network: Network) -> tuple[str, nn.Linear]:
    """Name and module of the layer that computes the class scores."""
    module: Any = network.module
    embedding = module.get_output_embeddings() if hasattr(module, "get_output_embeddings") else None
    classes = getattr(getattr(module, "config", None), "num_labels", None)
    linear = [(name, part) for name, part in module.named_modules() if isinstance(part, nn.Linear)]
    fits = [
        (name, part)
        for name, part in linear
        if (part is embedding if embedding is not None else part.out_features == classes)
    ]
    if not fits:
        raise ModelRefused(
            f"{type(module).__name__} does not compute its class scores by a linear layer of its own, so it has no "
            f"last layer to train. Use adapter=Full()."
        )
    return fits[-1]
