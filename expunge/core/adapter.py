"""Adapters: which numbers may move."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar, final

from expunge.core.events import BlockGroups
from expunge.core.model import Network, Wrapper
from expunge.core.request import Request

if TYPE_CHECKING:
    from jaxtyping import Float
    from torch import Tensor


class Adapter(ABC):
    """`(network, request) -> adapted`: answers exactly the same, but fewer numbers may move.

    The network given is left as it was and goes on answering as before: it is the reference, without a second copy.
    """

    @final
    def __call__(self, network: Network, request: Request) -> Adapted:
        """The network with the adapter in it; `request` lets an adapter choose by the data."""
        return Adapted(self.insert(network, request), network, self)

    def cheaper(self) -> Iterator[tuple[str, Adapter]]:
        """Adapters that need less memory, each with what to write for it."""
        return iter(())

    @abstractmethod
    def insert(self, network: Network, request: Request) -> Network:
        """A network over the same storage that answers the same, with the adapter in it."""

    def close(self, adapted: Network) -> BlockGroups | None:
        """What is done once, when the last step was taken and the best one put back; what a report should say of it."""
        return None

    @abstractmethod
    def merge(self, adapted: Network) -> Network:
        """A plain network with the change written into its weights; `adapted` is left as it was."""

    @abstractmethod
    def deltas(self, adapted: Network, before: Network) -> Iterator[tuple[str, Float[Tensor, "out in"]]]:
        """The change of each adapted weight matrix so far, by the name of its layer."""

    @abstractmethod
    def save(self, adapted: Network, folder: Path) -> None:
        """Write the adapter alone, as `adapter_config.json` and `adapter_model.safetensors`, where it has that form."""


@dataclass(frozen=True)
class Adapted(Wrapper):
    """A network with an adapter in it."""

    inner: Network
    """The adapted network, over the storage of the original."""
    original: Network
    """The network as it was, which answers as before."""
    adapter: Adapter
    transparent: ClassVar[bool] = True

    def plain(self) -> Network:
        """A network with the adapter's change written into its weights; this one is left as it was."""
        return self.adapter.merge(self.inner)

    def changes(self) -> Iterator[tuple[str, Float[Tensor, "out in"]]]:
        """The change of each adapted weight matrix so far, by the name of its layer."""
        return self.adapter.deltas(self.inner, self.original)

    def save(self, folder: Path) -> None:
        """Write the plain network."""
        self.plain().save(folder)

    def save_adapter(self, folder: Path) -> None:
        """Write the adapter alone, in peft's format, where it has that form; else nothing."""
        self.adapter.save(self.inner, folder)
