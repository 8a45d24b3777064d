"""What is wrong with the settings of a bounded adapter that are lists, patterns or files' own marks."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import TYPE_CHECKING

from expunge.primitives.settings import show

if TYPE_CHECKING:
    from expunge.adapters._bounded_peft import BoundedConfig

PRECISIONS = ("float64", "float32", "bfloat16", "float16", "float8_e4m3fn", "float8_e5m2")


def find_faults(config: BoundedConfig) -> Iterator[str]:
    """What is wrong, one fault after the other."""
    for name in ("target_modules", "exclude_modules", "layers_pattern"):
        value = getattr(config, name)
        if not (value is None or isinstance(value, str) or is_list(value, str)):
            yield f"{name} must be a name, a list of names, or None (got {show(value)})"
    for name in ("modules_to_save", "target_parameters"):
        value = getattr(config, name)
        if not (value is None or is_list(value, str)):
            yield f"{name} must be a list of names, or None (got {show(value)})"
    layers = config.layers_to_transform
    if not (layers is None or type(layers) is int or is_list(layers, int)):
        yield f"layers_to_transform must be numbers of blocks, or None (got {show(layers)})"
    for name in ("rank_pattern", "alpha_pattern"):
        value = getattr(config, name)
        if not isinstance(value, dict) or not is_list(list(value), str):
            yield f"{name} must name layers and their values (got {show(value)})"
    for name in ("target_modules", "exclude_modules", "rank_pattern", "alpha_pattern"):
        value = getattr(config, name)
        for text in (value,) if isinstance(value, str) else value if isinstance(value, dict) else ():
            if isinstance(text, str) and not is_expression(text):
                yield f"{name} holds {show(text)}, which is no regular expression"
    if not isinstance(config.init_weights, bool) and config.init_weights != "gaussian":
        yield f"init_weights must be True, False or 'gaussian' (got {show(config.init_weights)})"
    if not isinstance(config.start, bool):
        yield f"start must be True or False (got {show(config.start)})"
    if config.layers_pattern and layers is None:
        yield "layers_pattern needs layers_to_transform"
    if isinstance(config.target_modules, str) and layers is not None:
        yield "layers_to_transform needs a list of endings as target_modules, not a regular expression"
    if config.base is not None and not is_sketch(config.base):
        yield "base must be what saving wrote, or None"
    if not (config.digest is None or isinstance(config.digest, str)):
        yield "digest must be what saving wrote, or None"


def is_expression(text: str) -> bool:
    """Whether a text is a regular expression."""
    try:
        re.compile(text)
    except (re.error, RecursionError, OverflowError):
        return False
    return True


def is_list(value: object, kind: type) -> bool:
    """Whether a value is a list, or a set, of one type."""
    return isinstance(value, (list, set, tuple)) and all(type(each) is kind for each in value)


def is_sketch(value: object) -> bool:
    """Whether a value read from a file has the form of a sketch."""
    if not isinstance(value, dict) or set(value) != {"shapes", "precision", "projections"}:
        return False
    numbers = value["projections"]
    return (
        isinstance(value["shapes"], str)
        and value["precision"] in PRECISIONS
        and isinstance(numbers, list)
        and all(isinstance(number, float) for number in numbers)
    )
