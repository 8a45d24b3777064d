"""A preallocated key-value cache for decoding."""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from typing import Any

from torch import Tensor, nn
from transformers.cache_utils import DynamicLayer


def cache_argument(module: nn.Module) -> str:
    """What the module's `forward` calls its cache: transformers renamed `past_key_values` to `cache` in 5.24.

    Of a module that hands on whatever it is given, the first inside of it that names a cache is asked.
    """
    for part in module.modules():
        known = inspect.signature(part.forward).parameters
        for name in ("cache", "past_key_values"):
            if name in known:
                return name
    return "past_key_values"


class PreallocatedLayer(DynamicLayer):
    """Like transformers' `DynamicLayer`, which copies the whole cache at each token; this one never reallocates."""

    def __init__(self, keys: Tensor, values: Tensor, more: int) -> None:
        """From keys and values [rows, heads, length, width], with room for `more` tokens in each row."""
        super().__init__()  # type: ignore[no-untyped-call]
        self.lazy_initialization(keys, values)
        self.length = keys.shape[2]
        self.whole = [_with_room(part, more) for part in (keys, values)]
        self._show()

    def update(self, key_states: Tensor, value_states: Tensor, *_: Any, **__: Any) -> tuple[Tensor, Tensor]:
        """Append the next tokens' [rows, heads, new, width]; returns all keys and values."""
        start, self.length = self.length, self.length + key_states.shape[2]
        for whole, new in zip(self.whole, (key_states, value_states), strict=True):
            whole[:, :, start : self.length] = new
        return self._show()

    def keep(self, rows: Sequence[int]) -> None:
        """Keep only these rows, in this order. Rows whose place does not change are not copied. A row may only move to
        a
        place that none of the kept rows has."""
        for place, row in enumerate(rows):
            if place != row:
                for whole in self.whole:
                    whole[place, :, : self.length] = whole[row, :, : self.length]
        self.whole = [whole[: len(rows)] for whole in self.whole]
        self._show()

    def _show(self) -> tuple[Tensor, Tensor]:
        self.keys, self.values = (whole[:, :, : self.length] for whole in self.whole)
        return self.keys, self.values


def _with_room(part: Tensor, more: int) -> Tensor:
    rows, heads, length, width = part.shape
    whole = part.new_empty(rows, heads, length + more, width)
    whole[:, :, :length] = part
    return whole
