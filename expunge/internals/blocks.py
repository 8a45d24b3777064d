"""The repeated blocks of a transformer, found by structure and not by names.

A block is a child of a `ModuleList` that holds an attention module somewhere inside.
"""

from __future__ import annotations

from torch import nn


def blocks(module: nn.Module) -> dict[str, nn.Module]:
    """The blocks by name, in order; none where the architecture has no attention."""
    found: dict[str, nn.Module] = {}
    for name, part in module.named_modules():
        inside = any(name.startswith(f"{block}.") for block in found)
        if isinstance(part, nn.ModuleList) and not inside:
            found |= {f"{name}.{key}": child for key, child in part.named_children() if _attends(child)}
    return found


def is_attention(part: nn.Module) -> bool:
    """Whether a module is an attention layer, or the output projection of one."""
    # transformers names these classes ...Attention; the output projection of BERT-like ones is ...SelfOutput
    return "Attention" in type(part).__name__ or "SelfOutput" in type(part).__name__


def _attends(block: nn.Module) -> bool:
    return any(is_attention(part) for part in block.modules())
