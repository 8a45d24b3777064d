"""By how much an edited network's weights differ from the original's."""

from __future__ import annotations

from collections.abc import Callable

import torch

from expunge.core.model import Network
from expunge.events import Change, Edited


def describe_change(network: Network, result: Network) -> Edited:
    """The event of a method without steps: how many parameters of the network it changed, by how much, and where.

    An output layer that was tied to the embedding and no longer is counts as one of its own, as it does in the result.
    """
    blocks: dict[str, dict[str, float]] = {}
    before = dict(network.module.named_parameters(remove_duplicate=False))
    for name, now in result.module.named_parameters():
        moved = now.detach().float() - before[name].detach().float()
        block = blocks.setdefault(block_of(name), {"changed": 0, "parameters": 0, "square": 0.0})
        block["changed"] += int(moved.count_nonzero())
        block["square"] += float(moved.square().sum())
        block["parameters"] += moved.numel()
    changed, count, square = (sum(b[part] for b in blocks.values()) for part in ("changed", "parameters", "square"))
    changes = {name: Change(int(b["changed"]), int(b["parameters"]), b["square"] ** 0.5) for name, b in blocks.items()}
    return Edited(int(changed), int(count), square**0.5, changes)


def count_changed(one: Network, other: Network, written_in: Callable[[str], torch.dtype] | None = None) -> int | None:
    """How many parameters of two networks differ as numbers, whatever their types; None where their shapes differ.

    With `written_in`, the type that the other's file has for a parameter, both are rounded to it first: to be written
    in another precision is no change.
    """
    was, every = (dict(network.module.named_parameters(remove_duplicate=False)) for network in (one, other))
    if {name: p.shape for name, p in was.items()} != {name: p.shape for name, p in every.items()}:
        return None
    now = dict(other.module.named_parameters())  # each once, by its first name
    kinds = {name: written_in(name) if written_in else None for name in now}
    return sum(
        int((_in_type(was[name], kinds[name]) != _in_type(p.to(was[name].device), kinds[name])).count_nonzero())
        for name, p in now.items()
    )


def _in_type(weight: torch.Tensor, kind: torch.dtype | None) -> torch.Tensor:
    return weight.detach() if kind is None else weight.detach().to(kind)


def block_of(name: str) -> str:
    """The block that a parameter belongs to: its name up to the first number; without one, but for the last word."""
    parts = name.split(".")
    numbered = next((k for k, part in enumerate(parts) if part.isdigit()), len(parts) - 2)
    return ".".join(parts[: numbered + 1]) or name
