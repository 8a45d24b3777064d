"""What a transformers configuration says of sizes and lengths, where one may hold for all layers or for some."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

SELECTION = re.compile(r"budget|index\w*_(top|block)")
"""Settings that say how many keys, or blocks of them, are selected."""
PLACE = re.compile(r"block_size|compress|floor|mem_len|stride|" + SELECTION.pattern)
"""Settings that may count places of the row that is read, not positions in a text."""
LENGTH = re.compile(r"window|chunk|original_max|local_attention$|attention_span|" + PLACE.pattern)
NO_LENGTH = re.compile(r"feed_forward|pattern|_dim$|_layers$|_heads$|_token_id$|kernel")
"""Settings whose number is a length at which an architecture begins to read otherwise, by their names. One name too
many costs speed alone, since longer texts are then read one at a time."""


def prepare(module: Any) -> dict[str, Any]:
    """Set what a module is read with here; returns the settings that it is written with, for whoever serves it.

    RWKV divides weights in place before its first pass and halves its hidden states, for half precision's sake: a file
    would then hold other weights than were read, and be divided again. Nothing is divided here, and what was is undone.
    """
    served = {"use_cache": True}
    module.config.use_cache = False
    if getattr(module.config, "rescale_every", 0):
        for part in module.modules():
            if getattr(part, "layers_are_rescaled", False):
                part.train()._rescale_layers()
                part.eval()
        served["rescale_every"] = module.config.rescale_every
        module.config.rescale_every = 0
    return served


def largest(config: Any, name: str) -> int:
    """The largest value that a setting has in any layer; 0 where the configuration has none.

    Reading the attribute itself raises an error in transformers where layers differ in it.
    """
    settings = config.to_dict()
    key = config.attribute_map.get(name, name)
    layers = settings.get("per_layer_config") or {}
    return max(_numbers([settings.get(key), *(layer.get(key) for layer in layers.values())]), default=0)


def lengths(config: Any) -> list[int]:
    """The lengths, in tokens, at which an architecture begins to read otherwise, the lowest first: windows, chunks,
    numbers of keys that are selected, the length that rotary factors were made for."""
    return sorted(set(_lengths(config.to_dict(), LENGTH)))


def selections(config: Any) -> list[int]:
    """Those of them that say how many keys are selected."""
    return sorted(set(_lengths(config.to_dict(), SELECTION)))


def places(config: Any) -> list[int]:
    """Those of them that may count places of the row that is read."""
    return sorted(set(_lengths(config.to_dict(), PLACE)))


def _lengths(settings: dict[Any, Any], names: re.Pattern[str], named: bool = False) -> Iterator[int]:
    for key, value in settings.items():
        counts = (named or names.search(str(key))) and not NO_LENGTH.search(str(key))
        if isinstance(value, dict):
            yield from _lengths(value, names, bool(counts))
        elif counts:
            yield from (number for number in _numbers([value]) if number > 1)


def _numbers(values: list[Any]) -> list[int]:
    flat = [each for value in values for each in (value if isinstance(value, list | tuple) else [value])]
    return [each for each in flat if isinstance(each, int) and not isinstance(each, bool)]
