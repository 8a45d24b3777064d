"""Which tensors are alive while something runs, and how many bytes they hold at the most."""

from __future__ import annotations

import weakref
from abc import abstractmethod
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves


class Allocations(TorchDispatchMode):
    """Adds up the storages of all tensors that are made within the block, by kind."""

    def __init__(self, known: Iterable[Tensor]) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.known = {tensor.untyped_storage()._cdata for tensor in known}
        self.alive: dict[str, float] = {}
        """Bytes that are alive, by kind."""
        self.peak: dict[str, float] = {}
        """The most that was alive at one time; may be emptied in between."""

    @abstractmethod
    def weigh(self, tensor: Tensor) -> tuple[str, float]:
        """The kind of a new tensor and what it counts for; nothing where the kind is empty."""

    def look(self, name: str, given: Any, made: Any) -> None:
        """Called after each operation of torch with its name, its arguments and what it made."""

    def add(self, tensor: Tensor) -> None:
        """Count a tensor from now on, unless its storage is known."""
        storage = tensor.untyped_storage()
        kind, value = ("", 0.0) if storage._cdata in self.known else self.weigh(tensor)
        if kind:
            self.known.add(storage._cdata)
            self.alive[kind] = self.alive.get(kind, 0.0) + value
            self.peak[kind] = max(self.peak.get(kind, 0.0), self.alive[kind])
            weakref.finalize(storage, self._release, storage._cdata, kind, value)

    def _release(self, key: int, kind: str, value: float) -> None:
        self.known.discard(key)
        self.alive[kind] -= value

    def __torch_dispatch__(
        self, run: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        made = run(*args, **(kwargs or {}))
        self.look(run.__name__.partition(".")[0], args, made)
        for tensor in tree_leaves(made):
            if isinstance(tensor, Tensor):
                self.add(tensor)
        return made


class AllAllocations(Allocations):
    """Every tensor, in bytes of its storage."""

    def __init__(self, known: Iterable[Tensor]) -> None:
        super().__init__(known)
        self.largest = 0.0
        """Bytes of the largest."""

    def weigh(self, tensor: Tensor) -> tuple[str, float]:
        size = float(tensor.untyped_storage().nbytes())
        self.largest = max(self.largest, size)
        return "all", size


def without_contents(modules: Iterable[nn.Module]) -> list[Tensor]:
    """Make parameters and buffers that lie on the meta device claim to lie on a CPU; gradients are there too.

    To be called within a `FakeTensorMode`. Returns all of these tensors.
    """
    made: dict[int, tuple[Tensor, Tensor]] = {}  # the old one is kept beside, so that its id() is not given away
    for module in modules:
        for table in (module._parameters, module._buffers):
            for name, was in table.items():
                if was is None:
                    continue
                if id(was) not in made:
                    new = torch.empty(was.shape, dtype=was.dtype, device="cpu")
                    if isinstance(was, nn.Parameter):
                        new = nn.Parameter(new, was.requires_grad)
                        new.grad = torch.empty_like(new) if was.requires_grad else None
                    made |= {id(was): (was, new), id(new): (new, new)}
                table[name] = made[id(was)][1]  # type: ignore[assignment]
    tensors = [new for _, new in made.values()]
    return [*tensors, *(new.grad for new in tensors if new.grad is not None)]
