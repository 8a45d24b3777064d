"""Methods: what changes a network. Fine-tuning, an edit in one step and an attack are all this arrow."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator
from dataclasses import dataclass, fields, is_dataclass, replace
from typing import Any, Self

from expunge.core.model import Network, OnEvent
from expunge.core.rehearsal import Rehearsal
from expunge.core.request import Request


def ignore_event(event: dict[str, object]) -> None:
    """Nobody looks."""


class Method(ABC):
    """`(network, request) -> network`. The network given is left as it was.

    What comes back can be given on: `audit(attack(method(network, request), request), request)`.
    """

    @abstractmethod
    def __call__(self, network: Network, request: Request, on_event: OnEvent = ignore_event) -> Network:
        """The changed network; `on_event` is told what happens meanwhile."""

    def rehearse(self, network: Network, request: Request, rehearsal: Rehearsal) -> Network:
        """Do what a run does on a narrow random network that notes each pass: `expunge plan` counts those.

        A method with many equal steps takes few of them here, and says how many each stands for. One that is made of
        other methods rehearses those.
        """
        parts = {name: _Rehearsed(part, rehearsal) for name, part in self._parts()}
        same: Any = replace(self, **parts) if parts else self  # type: ignore[type-var]
        return same(network, request)  # type: ignore[no-any-return]

    def cheaper(self) -> Iterator[tuple[str, Self]]:
        """Variants that need less memory, each with what to write for it; from what costs least to what costs most."""
        for name, part in self._parts():
            for said, other in part.cheaper():
                yield f"{said} in {name}", replace(self, **{name: other})  # type: ignore[type-var]

    def _parts(self) -> list[tuple[str, Method]]:
        names = [field.name for field in fields(self)] if is_dataclass(self) else []
        return [(name, part) for name in names if isinstance(part := getattr(self, name), Method)]


@dataclass(frozen=True)
class _Rehearsed(Method):
    """A method that is rehearsed where it is called."""

    method: Method
    rehearsal: Rehearsal

    def __call__(self, network: Network, request: Request, on_event: OnEvent = ignore_event) -> Network:
        return self.method.rehearse(network, request, self.rehearsal)

    @property
    def adapter(self) -> Any:
        """That of the method."""
        return self.method.adapter  # type: ignore[attr-defined]


def edited(network: Network, result: Network) -> dict[str, object]:
    """What a method without steps tells its on_event: how many numbers of the network it changed, by how much, where."""
    blocks: dict[str, dict[str, float]] = {}
    pairs = zip(network.module.named_parameters(), result.module.parameters(), strict=True)
    for (name, was), now in pairs:
        moved = now.detach().float() - was.detach().float()
        block = blocks.setdefault(block_of(name), {"changed": 0, "parameters": 0, "square": 0.0})
        block["changed"] += int(moved.count_nonzero())
        block["square"] += float(moved.square().sum())
        block["parameters"] += moved.numel()
    changed, count, square = (sum(b[part] for b in blocks.values()) for part in ("changed", "parameters", "square"))
    told = {
        name: {"changed": b["changed"], "parameters": b["parameters"], "distance": b["square"] ** 0.5}
        for name, b in blocks.items()
    }
    return {"kind": "edit", "changed": changed, "parameters": count, "distance": square**0.5, "blocks": told}


def block_of(name: str) -> str:
    """The block that a parameter belongs to: its name up to the first number; without one, but for the last word."""
    parts = name.split(".")
    numbered = next((k for k, part in enumerate(parts) if part.isdigit()), len(parts) - 2)
    return ".".join(parts[: numbered + 1]) or name
