"""Adapters: which parameters are trained."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar, final

from expunge.core.model import Network, Wrapper
from expunge.core.request import Request
from expunge.events import BlockGroups

if TYPE_CHECKING:
    from jaxtyping import Float
    from torch import Tensor


class Adapter(ABC):
    """`(network, request) -> adapted`: answers exactly the same, but with fewer trainable parameters.

    The network that is passed in is not changed and goes on answering as before: it is the reference model, and no
    second copy of the weights is made.
    """

    @final
    def __call__(self, network: Network, request: Request) -> Adapted:
        """The network with the adapter in it; `request` lets an adapter choose by the data."""
        return Adapted(self.insert(network, request), network, self)

    def check(self, network: Network) -> None:  # noqa: B027 (some take every network)
        """Refuse a network that has nothing to adapt, before anything is done with it."""

    def cheaper(self) -> Iterator[tuple[str, Adapter]]:
        """Adapters that need less memory, each with what to write for it."""
        return iter(())

    @abstractmethod
    def insert(self, network: Network, request: Request) -> Network:
        """A network over the same storage that answers the same, with the adapter in it."""

    def close(self, adapted: Network) -> BlockGroups | None:
        """Called once after training, when the best step is restored. What it returns is put into the report."""
        return None

    @abstractmethod
    def merge(self, adapted: Network) -> Network:
        """A plain network with the update merged into its weights; `adapted` is not changed."""

    @abstractmethod
    def deltas(self, adapted: Network, before: Network) -> Iterator[tuple[str, Float[Tensor, "out in"]]]:
        """The change of each adapted weight matrix so far, by the name of its layer."""

    @abstractmethod
    def save(self, adapted: Network, folder: Path) -> None:
        """Write only the adapter, as peft's configuration and safetensors, where peft has one; else nothing."""


@dataclass(frozen=True)
class Adapted(Wrapper):
    """A network with an adapter in it."""

    inner: Network
    """The adapted network, over the storage of the original."""
    original: Network
    """The original network, over the same storage."""
    adapter: Adapter
    transparent: ClassVar[bool] = True

    def plain(self) -> Network:
        """A network with the adapter merged into its weights; this one is not changed."""
        return self.adapter.merge(self.inner)

    def changes(self) -> Iterator[tuple[str, Float[Tensor, "out in"]]]:
        """The change of each adapted weight matrix so far, by the name of its layer."""
        return self.adapter.deltas(self.inner, self.original)

    def save(self, folder: Path) -> None:
        """Write the merged network."""
        self.plain().save(folder)

    def save_adapter(self, folder: Path) -> None:
        """Write only the adapter, in peft's format; nothing where peft has no form for it."""
        self.adapter.save(self.inner, folder)
