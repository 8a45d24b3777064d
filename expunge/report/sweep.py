"""Runs that differ in settings and seeds, ranked by a rule on the validation half of the records: `sweep.json`."""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

SCHEMA = 1
SWEEP = "sweep.json"
"""The file of the table, in the folder of the runs."""
NEAREST = (
    "First the settings whose runs harm nothing: no number of what should stay is worse by more than the verdict's "
    "tolerance. Of these the one nearest to the ideal: the least mean distance, in tolerances, of the numbers of what "
    "should be gone. Then the others, the least harm first. Of several seeds the largest harm and the mean distance "
    "count."
)


@dataclass(frozen=True)
class Figures:
    """What one half of the records says of a run."""

    harm: float
    """By how many tolerances the most harmed number of what should stay exceeds its own; 0: nothing is harmed."""
    distance: float | None
    """Mean distance, in tolerances, of the numbers of what should be gone from their ideals; None: none is known."""
    by: float | None = None
    """With a rule of the user's: its number, the least of which is the best."""


@dataclass(frozen=True)
class Number:
    """One audit on one set, of the model after, on either half."""

    set: str
    audit: str
    validation: float | None
    validation_ideal: float | None
    test: float | None
    test_ideal: float | None


@dataclass(frozen=True)
class Tried:
    """One run."""

    folder: str
    """Its name, below the sweep's."""
    settings: Mapping[str, str]
    """What it has in place of the method's settings."""
    seed: int | None
    exit: int
    """The exit code that it alone would have had."""
    verdict: Mapping[str, str]
    """What it says of forgotten, traceless and unharmed, of all records; empty where it failed."""
    validation: Figures | None
    """None where it failed."""
    test: Figures | None
    numbers: tuple[Number, ...] = ()
    place: int = 0
    """1 is the best setting; runs of one setting share it."""


@dataclass(frozen=True)
class Sweep:
    """A finished sweep."""

    schema: int
    expunge: str
    created: str
    command: str
    method: str
    """As it was given."""
    rule: str
    """What ranked the runs."""
    split: str
    """What the halves are."""
    records: Mapping[str, tuple[int, int]]
    """Of each set how many are in the validation and in the test half."""
    runs: tuple[Tried, ...]
    """The best first."""

    @property
    def best(self) -> Tried | None:
        """The best run of the best setting; None where every run failed."""
        return next((run for run in self.runs if run.validation is not None), None)


def rank(runs: Sequence[Tried]) -> tuple[Tried, ...]:
    """The runs, those of the best setting first, by their validation halves alone; of equals as they were given."""
    settings: dict[tuple[tuple[str, str], ...], list[Tried]] = {}
    for run in runs:
        settings.setdefault(tuple(run.settings.items()), []).append(run)
    order = sorted(settings.values(), key=lambda group: _key([run.validation for run in group]))
    return tuple(
        replace(run, place=place)
        for place, group in enumerate(order, start=1)
        for run in sorted(group, key=lambda run: _key([run.validation]))
    )


def _key(figures: Sequence[Figures | None]) -> tuple[bool, float, float]:
    """What some runs of one setting are ordered by, the least first; one that failed makes its setting the last."""
    made = [each for each in figures if each is not None]
    if len(made) < len(figures):
        return True, math.inf, math.inf
    if made[0].by is not None:
        return False, 0.0, statistics.fmean(each.by for each in made if each.by is not None)
    far = statistics.fmean(math.inf if each.distance is None else each.distance for each in made)
    return False, max(each.harm for each in made), far
