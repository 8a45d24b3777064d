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
from typing import TypeVar
from weakref import WeakKeyDictionary

import torch
from torch import distributed, nn

from expunge.core.errors import EnvironmentRefused
from expunge.core.request import Example

FULL = ("can't allocate memory", "out of memory", "ALLOC_FAILED")
"""What errors say that are raised where memory ran out: by torch's allocator of a CPU, by CUDA's, by cuBLAS."""

T = TypeVar("T")
_most: WeakKeyDictionary[nn.Module, int] = WeakKeyDictionary()
"""Tokens (or images) that one call of a module may read, where that was found out."""


def _warned(text: str) -> None:
    warnings.warn(text, RuntimeWarning, stacklevel=3)


_say: ContextVar[Callable[[str], None]] = ContextVar("say", default=_warned)


@contextmanager
def heard(say: Callable[[str], None]) -> Iterator[None]:
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


def tried(read: Callable[[], T]) -> tuple[T] | None:
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
    model: object, examples: Sequence[Example], groups: Iterable[list[int]], read: Callable[[list[Example]], T]
) -> Iterator[tuple[list[int], T]]:
    """What `read` returns of each group of `examples`, and their indices: of groups cut smaller, where memory ends."""
    held = getattr(model, "module", None)
    module = held if isinstance(held, nn.Module) else nn.Module()  # without one, what is found out holds for this read
    for group in groups:
        waiting = [group]
        while waiting:
            waiting[:1] = _cut(waiting[0], examples, _most.get(module))
            part = [examples[k] for k in waiting[0]]
            said = tried(lambda part=part: read(part))  # type: ignore[misc]
            if said is None:
                _halve(module, part)
            else:
                yield waiting.pop(0), said[0]


def _cut(group: list[int], examples: Sequence[Example], most: int | None) -> list[list[int]]:
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


def _halve(module: nn.Module, part: list[Example]) -> None:
    size = sum(example.size for example in part)
    device = next((p.device for p in module.parameters()), torch.device("cpu"))
    if len(part) == 1:
        raise EnvironmentRefused(
            f"Out of memory on {device} with record {part[0].id} alone ({size} tokens; an image counts as 1). "
            f"Shorten it, or give another --device or a smaller model."
        )
    _most[module] = size // 2
    _say.get()(f"Out of memory on {device}: {size // 2} tokens (or images) at most are read at once from here on")
