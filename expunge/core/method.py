"""Methods: what changes a network. Fine-tuning, an edit in one step and an attack are all this arrow."""

from __future__ import annotations

from abc import ABC, abstractmethod

from expunge.core.model import Network, Watch
from expunge.core.request import Request


def unwatched(event: dict[str, object]) -> None:
    """Nobody looks."""


class Method(ABC):
    """`(network, request) -> network`. The network given is left as it was.

    What comes back can be given on: `audit(attack(method(network, request), request), request)`.
    """

    @abstractmethod
    def __call__(self, network: Network, request: Request, watch: Watch = unwatched) -> Network:
        """The changed network; `watch` is told what happens meanwhile."""


def edited(network: Network, result: Network) -> dict[str, object]:
    """What a method without steps tells its watch: how many numbers of the network it changed, and by how much."""
    changed, square, count = 0, 0.0, 0
    for was, now in zip(network.module.parameters(), result.module.parameters(), strict=True):
        moved = now.detach().float() - was.detach().float()
        changed += int(moved.count_nonzero())
        square += float(moved.square().sum())
        count += moved.numel()
    return {"kind": "edit", "changed": changed, "parameters": count, "distance": square**0.5}
