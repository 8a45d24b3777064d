"""Checks of settings that several plug-ins have."""

from __future__ import annotations

import math

from expunge.errors import UsageRefused

MOST_SEED = 2**63 - 1


def show(value: object) -> str:
    """A value in an error: in one line of ASCII, and not a whole file."""
    text = ascii(value)
    return text if len(text) <= 80 else f"{text[:80]}..."


def check_finite(plugin: object, *names: str) -> None:
    """Refuse NaN and infinity, which make a loss NaN steps later and cannot be written in the notation."""
    for name in names:
        value = vars(plugin)[name]
        if isinstance(value, float) and not math.isfinite(value):
            raise UsageRefused(f"The `{name}` of {type(plugin).__name__} must be a finite number. Got {value!r}.")


def check_least(plugin: object, **least: int) -> None:
    """Refuse whole numbers that are too small."""
    for name, smallest in least.items():
        value = vars(plugin)[name]
        if value < smallest:
            raise UsageRefused(f"The `{name}` of {type(plugin).__name__} must be at least {smallest}. Got {value!r}.")


def check_seed(plugin: object) -> None:
    """Refuse a `seed` that a generator of random numbers does not take."""
    seed = vars(plugin)["seed"]
    if not 0 <= seed <= MOST_SEED:
        raise UsageRefused(f"The `seed` of {type(plugin).__name__} must be from 0 to 2**63 - 1. Got {seed!r}.")
