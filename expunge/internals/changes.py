"""By how much an edited network's weights differ from the original's."""

from __future__ import annotations

from expunge.core.model import Network
from expunge.events import Change, Edited


def describe_change(network: Network, result: Network) -> Edited:
    """The event of a method without steps: how many parameters of the network it changed, by how much, and where."""
    blocks: dict[str, dict[str, float]] = {}
    pairs = zip(network.module.named_parameters(), result.module.parameters(), strict=True)
    for (name, was), now in pairs:
        moved = now.detach().float() - was.detach().float()
        block = blocks.setdefault(block_of(name), {"changed": 0, "parameters": 0, "square": 0.0})
        block["changed"] += int(moved.count_nonzero())
        block["square"] += float(moved.square().sum())
        block["parameters"] += moved.numel()
    changed, count, square = (sum(b[part] for b in blocks.values()) for part in ("changed", "parameters", "square"))
    changes = {name: Change(int(b["changed"]), int(b["parameters"]), b["square"] ** 0.5) for name, b in blocks.items()}
    return Edited(int(changed), int(count), square**0.5, changes)


def count_changed(one: Network, other: Network) -> int | None:
    """How many parameters of two networks differ as numbers, whatever their types; None where their shapes differ."""
    pairs = list(zip(one.module.parameters(), other.module.parameters(), strict=False))
    shapes = [[p.shape for p in network.module.parameters()] for network in (one, other)]
    if shapes[0] != shapes[1]:
        return None
    return sum(int((a.detach() != b.detach().to(a.device)).count_nonzero()) for a, b in pairs)


def block_of(name: str) -> str:
    """The block that a parameter belongs to: its name up to the first number; without one, but for the last word."""
    parts = name.split(".")
    numbered = next((k for k, part in enumerate(parts) if part.isdigit()), len(parts) - 2)
    return ".".join(parts[: numbered + 1]) or name
