"""Requests: the examples to forget, to retain, and those that no model was trained on."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Protocol

from expunge.errors import DataRefused
from expunge.primitives.repeat import Intake, Repeat


class Example(Protocol):
    """A labelled input: a question with its answer, a text, an image with its class."""

    @property
    def id(self) -> str:
        """The record's id in its file; safe to print."""

    @property
    def rows(self) -> int:
        """How many labelled rows (answer tokens, images) it contributes."""

    @property
    def size(self) -> int:
        """Its length: tokens, or 1 for an image."""

    @property
    def weight(self) -> float:
        """How often it counts: 1 unless a selector set it, 2 is the record twice; records of weight 0 are left out."""

    @property
    def alternatives(self) -> tuple[Example, ...]:
        """The same question with wrong answers; empty where there are none."""

    def input_digest(self) -> bytes:
        """SHA-256 of its inputs and labels, as the model reads them: examples with equal digests get equal answers."""

    def record_digest(self) -> str:
        """SHA-256 of its content without the id, case and spaces normalised: equal for equal records."""

    def fact_digest(self) -> str:
        """The same of what is asked and answered alone: records of one fact, however its answer begins, have one."""


@dataclass(frozen=True)
class Request:
    """The sets of examples that methods and audits read."""

    forget: tuple[Example, ...]
    """What the model must no longer know."""
    retain: tuple[Example, ...] = ()
    """What it must still know; training reads it."""
    holdout: tuple[Example, ...] = ()
    """Like the forget set, but no model was trained on it: its loss is the level that forgetting should reach."""
    stand_in: tuple[Example, ...] = ()
    """What to say instead of the forgotten answers."""
    probes: Mapping[str, tuple[Example, ...]] = field(default_factory=dict)
    """Further named sets, which only audits read."""
    repeats: tuple[Repeat, ...] = ()
    """Near-duplicates between the sets, where they were searched for."""
    intakes: Mapping[str, Intake] = field(default_factory=dict)
    """What became of the records of each set, where they were read from files or lists."""

    def __post_init__(self) -> None:
        for name, examples in self.sets().items():
            self._keep_weighted(name, examples)
        if not self.forget:
            raise DataRefused("The forget set is empty, so there is nothing to forget. Give at least one record.")
        self._refuse_overlap("forget", "retain")
        self._refuse_overlap("forget", "holdout")
        self._refuse_overlap("retain", "holdout")

    def sets(self) -> dict[str, tuple[Example, ...]]:
        """Every set that is not empty, by name, in reading order."""
        named = {"forget": self.forget, "retain": self.retain, "holdout": self.holdout, "stand_in": self.stand_in}
        return {name: examples for name, examples in {**named, **self.probes}.items() if examples}

    def fingerprint(self) -> str:
        """SHA-256 over the contents of all sets: requests with equal records have equal fingerprints."""
        digest = hashlib.sha256()
        for name, examples in sorted(self.sets().items()):
            digest.update(f"{name}:{len(examples)};".encode())
            digest.update("".join(sorted(example.record_digest() for example in examples)).encode())
        return digest.hexdigest()

    def _keep_weighted(self, name: str, examples: tuple[Example, ...]) -> None:
        """Drop the examples of weight 0, and refuse weights that are negative or not finite."""
        wrong = [e.id for e in examples if not 0 <= e.weight < math.inf]
        if wrong:
            raise DataRefused(f"The weight of record {wrong[0]} of the {name} set must be at least 0 and finite.")
        left = tuple(e for e in examples if e.weight)
        if len(left) < len(examples):
            own = {"probes": {**self.probes, name: left}} if name in self.probes else {name: left}
            for field_name, value in own.items():
                object.__setattr__(self, field_name, value)

    def _refuse_overlap(self, one: str, other: str) -> None:
        known = {example.fact_digest(): example.id for example in getattr(self, one)}
        common = [(known[e.fact_digest()], e.id) for e in getattr(self, other) if e.fact_digest() in known]
        if common:
            shown = ", ".join(f"{a} = {b}" for a, b in common[:5]) + (", ..." if len(common) > 5 else "")
            raise DataRefused(
                f"{len(common)} records are in the {one} set and in the {other} set ({shown}). Keep them in one only."
            )
