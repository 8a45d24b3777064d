"""Strips: where the values of one audit lie on an axis, for the picture beside its row; the page draws them."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypeGuard


@dataclass(frozen=True)
class Span:
    """A measured value and its interval."""

    value: float
    low: float | None = None
    high: float | None = None


def finite(value: object) -> TypeGuard[float]:
    """Whether it is a number that has a place on an axis."""
    return isinstance(value, int | float) and not isinstance(value, bool) and abs(value) < 1e300


@dataclass(frozen=True)
class Dot:
    """One model in a strip: where it stands, in per cent of the strip's width."""

    name: str
    role: str
    """The page's style for it: before, after, reference, else, or a run's colour."""
    value: float
    at: float
    low: float | None
    high: float | None
    lane: int


@dataclass(frozen=True)
class Strip:
    """The values of one audit on one axis, a lane for each model."""

    dots: list[Dot]
    lanes: int
    ideal: float | None
    start: float
    end: float
    log: bool
    below: bool
    """Whether a value lies below the start, where it is drawn: a logarithmic axis has no 0."""


def strip(models: Sequence[tuple[str, str, Span]], ideal: float | None = None) -> Strip:
    """Place models, each a name, a role and a value, on an axis that begins and ends at a round number."""
    values = [number for number in (*(span.value for _, _, span in models), ideal) if finite(number)]
    ends = [end for _, _, span in models for end in (span.low, span.high) if finite(end)]
    scale = _Scale.around(values, ends)
    dots = [
        Dot(name, role, span.value, scale.place(span.value), scale.at(span.low), scale.at(span.high), lane)
        for lane, (name, role, span) in enumerate(models)
        if finite(span.value)
    ]
    below = any(number < scale.low for number in (ideal, *(dot.value for dot in dots)) if finite(number))
    return Strip(dots, len(models), scale.at(ideal), scale.low, scale.high, scale.log, below)


def piles_up(values: Sequence[float], end: float) -> bool:
    """Whether most values lie in the first tenth of an axis from 0 to `end`, and are not all alike."""
    above = [value for value in values if value > 0]
    near = [value for value in values if 0 <= value < end / 10]
    apart = len(above) > 1 and max(above) >= 3 * min(above)
    return min(values, default=-1.0) >= 0 and 2 * len(near) > len(values) and apart


@dataclass(frozen=True)
class _Scale:
    low: float
    high: float
    log: bool

    @classmethod
    def around(cls, values: Sequence[float], ends: Sequence[float]) -> _Scale:
        """An axis for values and the ends of their intervals."""
        low, high = min((*values, *ends), default=0.0), max((*values, *ends), default=1.0)
        least = min((value for value in values if value > 1e-300), default=1.0)
        whole = 1.0 if low > -1e-300 and high <= 1 else _round_up(high)
        if piles_up(values, whole) or (min(values, default=0.0) > 1e-300 and high > 1000 * least):
            return cls(10.0 ** math.floor(math.log10(least)), 10.0 ** math.ceil(math.log10(high)), log=True)
        if low > -1e-300 and high <= 1:
            return cls(0.0, 1.0, log=False)  # shares and areas under a curve: one axis for all rows
        return cls(0.0 - _round_up(-low), _round_up(high), log=False)

    def at(self, value: float | None) -> float | None:
        return self.place(value) if finite(value) else None

    def place(self, value: float) -> float:
        low, high, here = (math.log10(max(v, 1e-300)) if self.log else v for v in (self.low, self.high, value))
        share = min(1.0, max(0.0, (here - low) / (high - low)))
        return round(3 + 94 * share, 2)


def _round_up(value: float) -> float:
    """The next of 1, 2, 3, 4, 5, 6, 8, 10, 20, ...; 0 for what is not above 0."""
    if value < 1e-300:
        return 0.0
    decade = 10.0 ** math.floor(math.log10(value))
    return next(step * decade for step in (1, 2, 3, 4, 5, 6, 8, 10, 20) if step * decade >= value)
