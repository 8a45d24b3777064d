"""In how many parts a step is read: as many as were asked for, and twice as many each time that memory runs out.

Losses are divided by the whole step's counts, so the parts add up to what one reading would give.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from expunge.core.model import Batch
from expunge.errors import EnvironmentRefused
from expunge.events import Note


@dataclass
class Accumulation:
    """How steps are cut, and since when: a run that is resumed reads each step as it was read."""

    since: list[tuple[int, int]]
    """The steps from which on another number of parts is read, and that number."""

    def at(self, step: int) -> int:
        """Into how many parts a step is cut, where its sets are long enough."""
        return next(parts for first, parts in reversed(self.since) if first <= step)

    def cut(self, step: int, sets: Mapping[str, Batch]) -> Iterator[dict[str, Batch]]:
        """Each set cut into nearly equal runs; into fewer where a set is shorter, so that no part lacks a set."""
        count = min(self.at(step), *map(len, sets.values()))
        for k in range(count):
            yield {name: batch[k * len(batch) // count : (k + 1) * len(batch) // count] for name, batch in sets.items()}

    def double(self, step: int, sets: Mapping[str, Batch]) -> Note:
        """Cut steps finer from this one on; the event that tells of it. Refuses where a part has one record already."""
        most = min(map(len, sets.values()))
        if self.at(step) >= most:
            sizes = ", ".join(f"{name} {-(-len(batch) // most)}" for name, batch in sets.items())
            raise EnvironmentRefused(
                f"step {step}: out of memory with as few records at once as possible ({sizes}). Lower batch or "
                f"retain_batch, set activations='recomputed', or shorten the records."
            )
        parts = min(2 * self.at(step), most)
        self.since = [(first, was) for first, was in self.since if first < step] + [(step, parts)]
        message = f"step {step}: out of memory, so steps are read in {parts} parts from here on (accumulate={parts})"
        return Note(message, step, parts)
