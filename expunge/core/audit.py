"""Audits: what a model's answers show of what it knows."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, ClassVar, Literal

import numpy as np

from expunge.core.model import Batch, Model, Network, network_of
from expunge.core.request import Example, Request
from expunge.primitives.statistics import auc, bootstrap, mean_interval

if TYPE_CHECKING:
    from jaxtyping import Float
    from torch import Tensor

Better = Literal["lower", "higher", "ideal"]


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

    def of(self, model: str) -> Finding:
        """The same finding, said of `model`."""
        return replace(self, model=model)


class Audit(ABC):
    """`(model, request) -> findings`. Sees answers, never weights."""

    definition: ClassVar[str]
    """One sentence: what the number is."""
    ideal: ClassVar[float | None] = None
    """What a model that never saw the data would get, where that is known beforehand."""

    @abstractmethod
    def __call__(self, model: Model, request: Request) -> tuple[Finding, ...]:
        """A finding for each set that the audit can read."""

    @property
    def name(self) -> str:
        """The class's name, which is the audit's name in reports and thresholds."""
        return type(self).__name__


class ScoreAudit(Audit):
    """An audit that scores each example and reports the mean for each set."""

    @abstractmethod
    def score(self, model: Model, batch: Batch) -> Float[Tensor, " examples"]:
        """One number for each example."""

    def applies(self, example: Example) -> bool:
        """Whether the question can be asked of this example."""
        return True

    def summary(self, scores: Float[Tensor, " examples"]) -> tuple[float, float, float]:
        """Value, low and high of a set."""
        values = scores.double().tolist()
        return float(np.mean(values)), *mean_interval(values)

    def chance(self, batch: Batch) -> float | None:
        """What guessing would get on these examples, where that is known."""
        return self.ideal

    def __call__(self, model: Model, request: Request) -> tuple[Finding, ...]:
        found = []
        sets = {name: [e for e in examples if self.applies(e)] for name, examples in request.sets().items()}
        every = [example for asked in sets.values() for example in asked]
        # All sets are scored together, so that a model which writes fills its batches.
        rest = self.score(model, every) if every else None
        for name, asked in sets.items():
            if asked and rest is not None:
                scores, rest = rest[: len(asked)], rest[len(asked) :]
                value, low, high = self.summary(scores)
                found.append(
                    Finding(
                        audit=self.name,
                        set=name,
                        value=value,
                        low=low,
                        high=high,
                        n=len(asked),
                        definition=self.definition,
                        ideal=self.chance(asked) if name not in ("retain",) else None,
                        scores=tuple(scores.double().tolist()),
                    )
                )
        return tuple(found)


class MembershipAudit(Audit):
    """Can an attacker who sees a score for each example tell the forgotten from the never seen?

    The value is the area under the curve with the forget set as positives: 0.5 is no difference, 1 is remembered,
    and 0 is over-forgotten, which betrays the forgotten as surely as 1.
    """

    ideal = 0.5

    @abstractmethod
    def score(self, model: Model, batch: Batch) -> Float[Tensor, " examples"]:
        """One number for each example: higher looks more like a member of the training data."""

    def __call__(self, model: Model, request: Request) -> tuple[Finding, ...]:
        if not request.holdout:
            return ()
        forget = self.score(model, request.forget).double().tolist()
        holdout = self.score(model, request.holdout).double().tolist()
        low, high = bootstrap(auc, forget, holdout)
        return (
            Finding(
                audit=self.name,
                set="forget vs holdout",
                value=auc(forget, holdout),
                low=low,
                high=high,
                n=len(forget) + len(holdout),
                definition=self.definition,
                ideal=self.ideal,
                scores=(*forget, *holdout),
            ),
        )


class WhiteBoxAudit(Audit):
    """An audit that reads a network's hidden states or weights, where the others see answers only."""

    @abstractmethod
    def look(self, network: Network, request: Request) -> tuple[Finding, ...]:
        """A finding for each set that the audit can read."""

    def __call__(self, model: Model, request: Request) -> tuple[Finding, ...]:
        return self.look(network_of(model, self.name), request)
