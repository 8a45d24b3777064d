"""Base classes of audits: a finding for each set, a score for each example, membership, and white-box audits.

Where examples have weights, means and areas are weighted: 2 is the record twice. Intervals resample
records, so a weight does not make them narrower. White-box audits count each record once.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, cast

from expunge.core.audit import BOTH, Audit, Finding
from expunge.core.model import Batch, Model, Network, network_of
from expunge.core.question import HiddenStates
from expunge.core.request import Example, Request
from expunge.internals.examples import Pictured
from expunge.primitives.estimates import area_estimate
from expunge.primitives.meanings import should_be_gone
from expunge.primitives.standard import Standard
from expunge.primitives.statistics import Interval, auc, bootstrap, mean_interval, weighted_mean

if TYPE_CHECKING:
    from jaxtyping import Float
    from torch import Tensor


def weights_of(examples: Sequence[Example]) -> list[float] | None:
    """How often each example counts; None where each counts once."""
    weights = [example.weight for example in examples]
    return None if all(weight == 1 for weight in weights) else weights


def mean_of(scores: Sequence[float], examples: Sequence[Example]) -> tuple[float, Interval]:
    """The mean of a score of each example, and its interval."""
    weights = weights_of(examples)
    return weighted_mean(scores, weights), mean_interval(scores, weights)


def lacks_classes(gone: Sequence[Example], holdout: Sequence[Example]) -> str:
    """Why images of a holdout set do not stand for those of another: it lacks their classes."""
    if not (gone and isinstance(gone[0], Pictured)):  # one of them tells: asking each whether it is takes long
        return ""
    ours, theirs = ({e.label for e in cast(Sequence[Pictured], examples)} for examples in (gone, holdout))
    return "" if ours <= theirs else "the holdout set is of other classes"


class SetAudit(Audit):
    """An audit with a finding for each set that has suitable records."""

    def applies(self, example: Example) -> bool:
        """Whether this example is suitable."""
        return True

    def applicable(self, request: Request) -> dict[str, list[Example]]:
        """What it is asked of, by set."""
        sets = {name: [e for e in examples if self.applies(e)] for name, examples in request.sets().items()}
        return {name: examples for name, examples in sets.items() if examples}

    def lacks(self, where: str, request: Request) -> str:
        if where == BOTH:
            return f"{self.name} is of one set at a time"
        if where in self.applicable(request):
            return ""
        needs = f" ({self.needs})" if self.needs else ""
        return f"no record of the set '{where}' has what {self.name} needs{needs}"

    def unlike(self, where: str, request: Request) -> str:
        return lacks_classes(request.sets().get(where, ()), request.holdout)


class ScoreAudit(SetAudit):
    """An audit that scores each example and reports the mean for each set."""

    @abstractmethod
    def score(self, model: Model, batch: Batch) -> Float[Tensor, " examples"]:
        """One number for each example."""

    def chance(self, model: Model, batch: Batch, request: Request) -> float | None:
        """What a model that never saw these examples would get, where that can be told without a holdout set."""
        return self.ideal

    def __call__(self, model: Model, request: Request) -> tuple[Finding, ...]:
        sets = self.applicable(request)
        every = [example for asked in sets.values() for example in asked]
        if every:
            self.check(model)
        # All sets are scored together, so that decoding has full batches.
        rest = self.score(model, every).double().tolist() if every else []
        found = []
        for name, asked in sets.items():
            scores, rest = rest[: len(asked)], rest[len(asked) :]
            ideal = self.chance(model, asked, request) if should_be_gone(name) else self.ideal
            made = self.finding(name, *mean_of(scores, asked), scores, ideal)
            found.append(replace(made, weights=tuple(weights_of(asked) or ())))
        return tuple(found)


class MembershipAudit(Audit):
    """Can an attacker with a score for each example distinguish the forget set from the holdout set?

    The value is the area under the ROC curve with the forget set as positives: 0.5 is no difference, 1 is remembered,
    and 0 is over-forgotten, which reveals the forget set as surely as 1.
    """

    ideal = 0.5
    standard = Standard(trace=0.1, estimate=area_estimate)

    @abstractmethod
    def score(self, model: Model, batch: Batch) -> Float[Tensor, " examples"]:
        """One number for each example: higher looks more like a member of the training data."""

    def applies(self, example: Example) -> bool:
        """Whether this example is suitable."""
        return True

    def sides(self, request: Request) -> tuple[list[Example], list[Example]]:
        """The forgotten and the held out examples that it is asked of."""
        forget, holdout = ([e for e in each if self.applies(e)] for each in (request.forget, request.holdout))
        return forget, holdout

    def lacks(self, where: str, request: Request) -> str:
        """Why there will be no finding of a set."""
        if where != BOTH or not request.holdout:
            return f"{self.name} is of the set '{BOTH}', and needs --holdout"
        lacking = [name for name, side in zip(("forget", "holdout"), self.sides(request), strict=True) if not side]
        return f"{self.name}: the {lacking[0]} set has no record that it can be asked of" if lacking else ""

    def unlike(self, where: str, request: Request) -> str:
        return lacks_classes(request.forget, request.holdout)

    def __call__(self, model: Model, request: Request) -> tuple[Finding, ...]:
        sides = self.sides(request)
        if not all(sides):
            return ()
        self.check(model)
        forget, holdout = (self.score(model, examples).double().tolist() for examples in sides)
        weights = [weights_of(examples) for examples in sides]
        area = auc(forget, holdout, *weights)
        interval = bootstrap(auc, forget, holdout, weights=weights)
        made = self.finding(BOTH, area, interval, (*forget, *holdout), self.ideal)
        counts = [example.weight for examples in sides for example in examples]
        return (replace(made, weights=tuple(counts) if any(weights) else (), positives=len(forget)),)


class WhiteBoxAudit(Audit):
    """An audit that reads a network's hidden states or weights; all others see answers only."""

    reads = (HiddenStates,)

    @abstractmethod
    def look(self, network: Network, request: Request) -> tuple[Finding, ...]:
        """A finding for each set that the audit can read."""

    def __call__(self, model: Model, request: Request) -> tuple[Finding, ...]:
        return self.look(network_of(model, self.name), request)
