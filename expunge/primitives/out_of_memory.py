"""Forward passes that halve the batch when memory runs out, and go on.

A model's answer about an example does not depend on the rest of its batch, so only time is lost. A smaller batch size
that was found for a module is used for as long as the module lives. A single record that does not fit is refused.
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
"""Texts of out-of-memory errors: of torch's CPU allocator, of CUDA's, of cuBLAS."""

T = TypeVar("T")


class Sized(Protocol):
    """An example."""

    @property
    def id(self) -> str:
        """Its id, which an error may print."""

    @property
    def size(self) -> int:
        """Tokens, or images."""


_most: WeakKeyDictionary[nn.Module, int] = WeakKeyDictionary()
"""Tokens (or images) that one forward pass of a module may read, where memory has run out before."""


def _warn(text: str) -> None:
    warnings.warn(text, RuntimeWarning, stacklevel=3)


_say: ContextVar[Callable[[str], None]] = ContextVar("say", default=_warn)


@contextmanager
def report_smaller_batches(say: Callable[[str], None]) -> Iterator[None]:
    """Within the block `say` is called with a line each time that a batch is halved; outside it a warning is raised."""
    token = _say.set(say)
    try:
        yield
    finally:
        _say.reset(token)


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an error means that memory ran out."""
    if isinstance(error, (MemoryError, torch.OutOfMemoryError)):
        return True
    return isinstance(error, RuntimeError) and any(words in str(error) for words in FULL)


def try_in_memory(read: Callable[[], T]) -> tuple[T] | None:
    """What `read` returns, in a tuple; None where memory ran out, after freeing what the attempt had allocated."""
    try:
        return (read(),)
    except (RuntimeError, MemoryError) as error:
        # Other ranks wait for this one in the middle of the forward pass, so it must not start again.
        if not is_out_of_memory(error) or (distributed.is_available() and distributed.is_initialized()):
            raise
    # After the except block: the error refers to frames that refer to the tensors.
    gc.collect()
    torch.cuda.empty_cache()  # a no-op without CUDA
    return None


def in_fitting_batches(
    module: nn.Module | None, examples: Sequence[Sized], groups: Iterable[list[int]], read: Callable[[list[Any]], T]
) -> Iterator[tuple[list[int], T]]:
    """What `read` returns for each group of `examples`, and the group's indices; groups are halved when memory runs
    out.

    The smaller size is remembered for as long as the module lives; without a module, for this call.
    """
    module = nn.Module() if module is None else module
    for group in groups:
        waiting = [group]
        while waiting:
            waiting[:1] = _cut(waiting[0], examples, _most.get(module))
            part = [examples[k] for k in waiting[0]]
            result = try_in_memory(lambda part=part: read(part))  # type: ignore[misc]
            if result is None:
                _halve(module, part)
            else:
                yield waiting.pop(0), result[0]


def _cut(group: list[int], examples: Sequence[Sized], most: int | None) -> list[list[int]]:
    """The group cut into runs of at most `most` tokens, or of one example."""
    runs: list[list[int]] = []
    size = 0
    for k in group:
        size += examples[k].size
        if not runs or (most is not None and size > most):
            runs.append([])
            size = examples[k].size
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
    _say.get()(f"Out of memory on {device}: batches have at most {size // 2} tokens (or images) from here on")
