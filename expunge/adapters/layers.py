"""Which layers of a network are its MLP layers and which its attention, found by structure and not by names.

Of a block's linear layers (see `core/blocks.py`), those inside an attention module are attention's, and the others are
the feed-forward (MLP) part's. A mixture's experts belong to it too; they are no linear layers but slices of one tensor.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

from torch import nn
from transformers.pytorch_utils import Conv1D

from expunge.core.blocks import blocks, is_attention
from expunge.core.errors import ModelRefused, UsageRefused
from expunge.core.experts import mixtures

Kind = Literal["mlp", "attention"]
Targets = Literal["mlp", "attention", "all"]


def kinds(module: nn.Module) -> dict[str, Kind]:
    """Every linear layer of every block, by name, and the part of the block that it belongs to."""
    found: dict[str, Kind] = {}
    for block_name, block in blocks(module).items():
        attention = [name for name, part in block.named_modules() if is_attention(part)]
        for name, part in block.named_modules():
            if isinstance(part, (nn.Linear, Conv1D)):
                inside = any(name == a or name.startswith(f"{a}.") for a in attention)
                found[f"{block_name}.{name}"] = "attention" if inside else "mlp"
    return found


def chosen(module: nn.Module, targets: Targets, only: Sequence[int] | None = None) -> list[str]:
    """Names of the linear layers to adapt, of the blocks `only` (from 0; None: all). Refuses a block that has none."""
    if targets not in ("mlp", "attention", "all"):
        raise UsageRefused(f"targets must be 'mlp', 'attention' or 'all'. Got {targets!r}.")
    names = list(blocks(module))
    mixed = mixtures(module)
    if mixed and targets != "attention":
        raise ModelRefused(
            f"{type(module).__name__}: the experts of {len(mixed)} of {len(names)} blocks lie in one tensor each, "
            f"which low-rank adapters do not take. Use adapter=SEUF(), which moves one expert and its router, "
            f"adapter=Full(), or targets='attention'."
        )
    if not names:
        raise ModelRefused(
            f"{type(module).__name__} has no transformer blocks, so no {targets} linear layers to adapt. "
            f"Use adapter=Full(), which moves every weight."
        )
    layers = [name for name, kind in kinds(module).items() if targets in ("all", kind)]
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


def kind_of(parameter: str, known: dict[str, Kind]) -> str:
    """`mlp`, `attention` or `other`: the part that a parameter of an adapted network belongs to."""
    name = parameter.removeprefix("base_model.model.")
    layers = name.split(".")
    for end in range(len(layers), 0, -1):
        kind = known.get(".".join(layers[:end]))
        if kind:
            return kind
    return "mlp" if "experts" in layers else "other"
