"""Reads that run out of memory and go on, with half as much read at once.

What a model says of an example does not depend on which others are read beside it, so nothing but time is lost. What is
found out about a model holds for as long as the model lives. A single record that does not fit is refused.
"""

from __future__ import annotations

import gc
import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any, Protocol, TypeVar
from weakref import WeakKeyDictionary

import torch
from torch import distributed, nn

from expunge.errors import EnvironmentRefused

FULL = ("can't allocate memory", "out of memory", "ALLOC_FAILED")
"""What errors say that are raised where memory ran out: by torch's allocator of a CPU, by CUDA's, by cuBLAS."""

T = TypeVar("T")


class Sized(Protocol):
    """What is read: an example."""

    @property
    def id(self) -> str:
        """Its name, which a refusal may print."""

    @property
    def size(self) -> int:
        """Tokens, or images."""


_most: WeakKeyDictionary[nn.Module, int] = WeakKeyDictionary()
"""Tokens (or images) that one call of a module may read, where that was found out."""


def _warned(text: str) -> None:
    warnings.warn(text, RuntimeWarning, stacklevel=3)


_say: ContextVar[Callable[[str], None]] = ContextVar("say", default=_warned)


@contextmanager
def report_smaller_batches(say: Callable[[str], None]) -> Iterator[None]:
    """Within the block `say` is told what is read in smaller parts, in a line each time; outside it is a warning."""
    token = _say.set(say)
    try:
        yield
    finally:
        _say.reset(token)


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an error says that memory ran out."""
    if isinstance(error, (MemoryError, torch.OutOfMemoryError)):
        return True
    return isinstance(error, RuntimeError) and any(words in str(error) for words in FULL)


def try_in_memory(read: Callable[[], T]) -> tuple[T] | None:
    """What `read` returns; None where memory ran out, and what was left lying is then given back."""
    try:
        return (read(),)
    except (RuntimeError, MemoryError) as error:
        # Processes that share a run wait for each other in the middle of a read, so none may begin it anew.
        if not is_out_of_memory(error) or (distributed.is_available() and distributed.is_initialized()):
            raise
    # Outside of the block: the error holds the frames that hold what was in memory.
    gc.collect()
    torch.cuda.empty_cache()  # nothing where no CUDA is in use
    return None


def in_fitting_batches(
    module: nn.Module | None, examples: Sequence[Sized], groups: Iterable[list[int]], read: Callable[[list[Any]], T]
) -> Iterator[tuple[list[int], T]]:
    """What `read` returns of each group of `examples`, and their indices: of groups cut smaller, where memory ends.

    What is found out about a module holds for as long as it lives; without one, for this read.
    """
    module = nn.Module() if module is None else module
    for group in groups:
        waiting = [group]
        while waiting:
            waiting[:1] = _cut(waiting[0], examples, _most.get(module))
            part = [examples[k] for k in waiting[0]]
            said = try_in_memory(lambda part=part: read(part))  # type: ignore[misc]
            if said is None:
                _halve(module, part)
            else:
                yield waiting.pop(0), said[0]


def _cut(group: list[int], examples: Sequence[Sized], most: int | None) -> list[list[int]]:
    """The group in runs of at most `most` tokens, or of one example."""
    runs: list[list[int]] = []
    held = 0
    for k in group:
        held += examples[k].size
        if not runs or (most is not None and held > most):
            runs.append([])
            held = examples[k].size
        runs[-1].append(k)
    return runs


def _halve(module: nn.Module, part: list[Any]) -> None:
    size = sum(example.size for example in part)
    device = next((p.device for p in module.parameters()), torch.device("cpu"))
    if len(part) == 1:
        raise EnvironmentRefused(
            f"Out of memory on {device} with record {part[0].id} alone ({size} tokens; an image counts as 1). "
            f"Shorten it, or give another --device or a smaller model."
        )
    _most[module] = size // 2
    _say.get()(f"Out of memory on {device}: {size // 2} tokens (or images) at most are read at once from here on")
