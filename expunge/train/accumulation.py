"""Gradient accumulation: the number of micro-batches in a step, which doubles each time that memory runs out.

Losses are divided by the whole step's counts, so micro-batches add up to the gradient of the whole batch.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from expunge.core.model import Batch
from expunge.errors import EnvironmentRefused
from expunge.events import Note


@dataclass
class Accumulation:
    """The number of micro-batches, by step: a resumed run splits each step as the first run did."""

    since: list[tuple[int, int]]
    """Pairs of a step and the number of micro-batches from that step on."""

    def at(self, step: int) -> int:
        """Number of micro-batches of a step, if its sets are long enough."""
        return next(parts for first, parts in reversed(self.since) if first <= step)

    def cut(self, step: int, sets: Mapping[str, Batch]) -> Iterator[dict[str, Batch]]:
        """Each set split into nearly equal runs; into fewer where a set is shorter, so that each micro-batch has all
        sets."""
        count = min(self.at(step), *map(len, sets.values()))
        for k in range(count):
            yield {name: batch[k * len(batch) // count : (k + 1) * len(batch) // count] for name, batch in sets.items()}

    def double(self, step: int, sets: Mapping[str, Batch]) -> Note:
        """Double the micro-batches from this step on; the event to report. Refuses where each has one record
        already."""
        most = min(map(len, sets.values()))
        if self.at(step) >= most:
            sizes = ", ".join(f"{name} {-(-len(batch) // most)}" for name, batch in sets.items())
            raise EnvironmentRefused(
                f"step {step}: out of memory with as few records at once as possible ({sizes}). Lower batch or "
                f"retain_batch, set activations='recomputed', or shorten the records."
            )
        parts = min(2 * self.at(step), most)
        self.since = [(first, was) for first, was in self.since if first < step] + [(step, parts)]
        message = f"step {step}: out of memory, so steps have {parts} micro-batches from here on (accumulate={parts})"
        return Note(message, step, parts)
