"""Adapters: which numbers may move."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from expunge.core.model import Network
from expunge.core.request import Request

if TYPE_CHECKING:
    from jaxtyping import Float
    from torch import Tensor


class Adapter(ABC):
    """A network in; a network out that answers exactly the same, but in which fewer numbers may move.

    The network given is left as it was and goes on answering as before: it is the reference, without a second copy.
    """

    @abstractmethod
    def __call__(self, network: Network, request: Request) -> Network:
        """The adapted network; `request` lets an adapter choose by the data."""

    def cheaper(self) -> Iterator[tuple[str, Adapter]]:
        """Adapters that need less memory, each with what to write for it."""
        return iter(())

    def close(self, adapted: Network) -> dict[str, object]:
        """What is done once, when the last step was taken and the best one put back; what a report should say of it."""
        return {}

    @abstractmethod
    def merge(self, adapted: Network) -> Network:
        """A plain network with the change written into its weights; `adapted` is left as it was."""

    @abstractmethod
    def deltas(self, adapted: Network, before: Network) -> Iterator[tuple[str, Float[Tensor, "out in"]]]:
        """The change of each adapted weight matrix so far, by the name of its layer."""

    @abstractmethod
    def save(self, adapted: Network, folder: Path) -> None:
        """Write the adapter alone, as `adapter_config.json` and `adapter_model.safetensors`, where it has that form."""
