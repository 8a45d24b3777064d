"""Which layers of a network are its MLP layers and which its attention, found by structure and not by names.

Of a block's linear layers (see `internals/blocks.py`), those inside an attention module are attention's, and the
others are the feed-forward (MLP) part's. A mixture's experts belong to it too, where they are slices of one tensor as
well; its router does not, nor does the gate of a shared expert, which says one number for each token.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import torch
from torch import nn
from transformers.pytorch_utils import Conv1D

from expunge.errors import ModelRefused, UsageRefused
from expunge.internals.blocks import blocks, is_attention
from expunge.internals.mixtures import mixtures

DTYPES = (torch.float64, torch.float32, torch.bfloat16, torch.float16)
"""What weights may be that an update is added to."""
Kind = Literal["mlp", "attention"]
Targets = Literal["mlp", "attention", "all"]


def kinds(module: nn.Module) -> dict[str, Kind]:
    """Every linear layer of every block, by name, and its fused experts: the part of the block that each belongs to."""
    found: dict[str, Kind] = {}
    for block_name, block in blocks(module).items():
        attention = [name for name, part in block.named_modules() if is_attention(part)]
        for name, part in block.named_modules():
            if isinstance(part, (nn.Linear, Conv1D)):
                inside = any(name == a or name.startswith(f"{a}.") for a in attention)
                found[f"{block_name}.{name}"] = "attention" if inside else "mlp"
    return found | dict.fromkeys(stacks(module), "mlp")


def stacks(module: nn.Module) -> dict[str, nn.Module]:
    """The experts of each mixture whose matrices lie in one tensor [experts, ...], by name."""
    return {f"{mixture.name}.experts": mixture.experts for mixture in mixtures(module).values()}


def fused(experts: nn.Module) -> bool:
    """Whether experts answer through transformers' experts interface, which tells how their tensors are laid out."""
    told = all(hasattr(experts, key) for key in ("has_gate", "has_bias", "is_transposed", "has_post_expert_norm"))
    if not told or getattr(experts, "_is_expert_parallel", False):
        return False
    names = ("gate_up_proj" if experts.has_gate else "up_proj", "down_proj")
    return all(getattr(experts, name).dim() == 3 and getattr(experts, name).dtype in DTYPES for name in names)


def chosen(module: nn.Module, targets: Targets, only: Sequence[int] | None = None) -> list[str]:
    """Names of the linear layers to adapt, of the blocks `only` (from 0; None: all). Refuses a block that has none."""
    if targets not in ("mlp", "attention", "all"):
        raise UsageRefused(f"targets must be 'mlp', 'attention' or 'all'. Got {targets!r}.")
    names = list(blocks(module))
    strange = [name for name, experts in stacks(module).items() if not fused(experts)]
    if strange and targets != "attention":
        raise ModelRefused(
            f"{type(module).__name__}: {len(strange)} of {len(names)} blocks have experts of a form that low-rank "
            f"adapters do not take: quantized, split over processes, or none of transformers' experts interface "
            f"(first: {strange[0]}). Use targets='attention', or adapter=Full()."
        )
    if not names:
        raise ModelRefused(
            f"{type(module).__name__} has no transformer blocks, so no {targets} linear layers to adapt. "
            f"Use adapter=Full(), which moves every weight."
        )
    layers = [
        name
        for name, kind in kinds(module).items()
        if targets in ("all", kind) and not _gate(module.get_submodule(name))
    ]
    empty = [block for block in names if not any(layer.startswith(f"{block}.") for layer in layers)]
    if empty:
        raise ModelRefused(
            f"{type(module).__name__}: {len(empty)} of {len(names)} blocks have no {targets} linear layer "
            f"(first: {empty[0]}). Use targets='all', or adapter=Full()."
        )
    if only is None:
        return layers
    if not only or not set(only) <= set(range(len(names))):
        raise UsageRefused(f"layers must be blocks, from 0 to {len(names) - 1}, or None for all. Got {only!r}.")
    return [layer for layer in layers if any(layer.startswith(f"{names[number]}.") for number in only)]


def _gate(layer: nn.Module) -> bool:
    """Whether a layer says one number only, for an update of which no low rank is low."""
    return isinstance(layer, nn.Linear) and layer.out_features == 1


def kind_of(parameter: str, known: dict[str, Kind]) -> str:
    """`mlp`, `attention` or `other`: the part that a parameter of an adapted network belongs to."""
    name = parameter.removeprefix("base_model.model.")
    layers = name.split(".")
    for end in range(len(layers), 0, -1):
        kind = known.get(".".join(layers[:end]))
        if kind:
            return kind
    return "mlp" if "experts" in layers else "other"
