"""Audits: measurements of a model's answers. Summaries: what follows from several findings."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar, Literal

from expunge.core.model import Model
from expunge.core.question import LogProbabilities, Question
from expunge.core.request import Request
from expunge.errors import UsageRefused
from expunge.primitives.meanings import is_unseen, should_be_gone
from expunge.primitives.standard import Standard

Better = Literal["lower", "higher", "ideal"]
BOTH = "forget vs holdout"
"""Name of the set of a comparison of the two."""


@dataclass(frozen=True)
class Finding:
    """One number, what it was measured on, its 95 % interval, and what a model that never saw the data would get."""

    audit: str
    set: str
    value: float
    low: float
    high: float
    n: int
    definition: str
    ideal: float | None = None
    model: str = "before"
    """before, after or reference."""
    scores: tuple[float, ...] = ()
    """The score of each example, in the order of the set."""
    better: Better = "higher"
    """Which way is good on this set; ideal: nearer to it, from both sides, for over-forgetting is a trace too."""
    weights: tuple[float, ...] = ()
    """How often each example counts; empty where each counts once."""
    positives: int = 0
    """Of a comparison of two sets, how many of the scores, from the first on, are of the first."""

    def of(self, model: str) -> Finding:
        """The same finding, for `model`."""
        return replace(self, model=model)

    def with_ideal(self, ideal: float | None) -> Finding:
        """The same finding, with what a model that never saw the forget set would get."""
        known = ideal is not None and should_be_gone(self.set)
        return replace(self, ideal=ideal, better="ideal" if known else self.better)


class Measure(ABC):
    """What audits and summaries declare about their numbers."""

    definition: ClassVar[str]
    """One sentence: what the number is."""
    better: ClassVar[Literal["higher", "lower"]] = "higher"
    """The direction of a model that knows the set: higher or lower."""
    ideal: ClassVar[float | None] = None
    """The value of a model that never saw the data, where it is known beforehand."""
    standard: ClassVar[Standard | None] = None
    """What a verdict asks of its numbers without being told; None: nothing."""

    @property
    def name(self) -> str:
        """The class's name, which is the audit's name in reports and thresholds."""
        return type(self).__name__

    def direction(self, where: str) -> Literal["higher", "lower"]:
        """The direction of a model that knows the set `where`."""
        return self.better

    def unlike(self, where: str, request: Request) -> str:
        """Why the holdout set does not show how a model answers that never saw `where`; empty where it does."""
        return ""

    def good(self, where: str, ideal: float | None) -> Better:
        """Which way is good on a set: of what should be gone to the ideal, or else away from what knowing it gives."""
        if should_be_gone(where):
            lost: Better = "lower" if self.direction(where) == "higher" else "higher"
            return lost if ideal is None else "ideal"
        return "ideal" if where == BOTH or is_unseen(where) else self.direction(where)

    def finding(
        self,
        where: str,
        value: float,
        interval: tuple[float, float],
        scores: Sequence[float],
        ideal: float | None = None,
    ) -> Finding:
        """A finding of this measure on the set `where`."""
        low, high = interval
        return Finding(
            audit=self.name,
            set=where,
            value=value,
            low=low,
            high=high,
            n=len(scores),
            definition=self.definition,
            ideal=ideal,
            scores=tuple(scores),
            better=self.good(where, ideal),
        )


class Audit(Measure):
    """`(model, request) -> findings`. Sees answers, never weights."""

    reads: ClassVar[tuple[type[Question[Any]], ...]] = (LogProbabilities,)
    """The kinds of question that it asks."""
    needs: ClassVar[str] = ""
    """What a record must have for it, in a user's words, such as options."""
    families: ClassVar[tuple[str, ...]] = ()
    """Families of models that are asked it where no audits are named; "any" is all that no audit names."""

    @abstractmethod
    def __call__(self, model: Model, request: Request) -> tuple[Finding, ...]:
        """A finding for each set that the audit can read."""

    def lacks(self, where: str, request: Request) -> str:
        """Why there will be no finding for a set; empty where there will be one."""
        return ""

    def check(self, model: Model) -> None:
        """Refuse a model that does not answer what the audit asks. Raises `UsageRefused`."""
        missing = [kind.__name__ for kind in self.reads if not model.answers_to(kind)]
        if missing:
            raise UsageRefused(
                f"{self.name} asks a model for {' and '.join(missing)}, which {type(model.plain()).__name__} cannot "
                f"answer. Leave {self.name} out."
            )


class Summary(Measure):
    """`findings -> findings`: computed from the findings of audits alone, of one model or of several."""

    reads: ClassVar[tuple[str, ...]]
    """Names of the audits whose findings it needs, all of them."""
    compares: ClassVar[bool] = False
    """Whether it needs the findings of a reference model too."""

    @abstractmethod
    def __call__(self, findings: Sequence[Finding]) -> tuple[Finding, ...]:
        """Its own findings; none where what it reads is not there."""

    def can_read(self, audits: Iterable[str], referenced: bool) -> bool:
        """Whether these audits, with a reference model or without, give it what it reads."""
        return set(self.reads) <= set(audits) and (referenced or not self.compares)
