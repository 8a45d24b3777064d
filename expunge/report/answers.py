"""What a verdict says: three answers, each yes, no or not measured, with the rules that they follow from."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Literal

from expunge.core.audit import BOTH
from expunge.primitives.meanings import is_unseen, should_be_gone

Name = Literal["forgotten", "traceless", "unharmed"]
Said = Literal["yes", "no", "not measured"]
NAMES: tuple[Name, ...] = ("forgotten", "traceless", "unharmed")
ORDER = ("forget", "retain", "holdout")


def in_order(sets: Iterable[str]) -> list[str]:
    """Each set once, as they are read on a page: what should be gone first, then what should stay."""
    return sorted(dict.fromkeys(sets), key=lambda where: ORDER.index(where) if where in ORDER else len(ORDER))


def should_stay(where: str) -> bool:
    """Whether a model is expected to know a set as well as before."""
    return not should_be_gone(where) and where not in (BOTH, "stand_in")


def asks_what_stays(where: str) -> bool:
    """Whether a probe shows what became of the rest of the model's knowledge."""
    return should_stay(where) and not is_unseen(where)


def answer_about(where: str) -> Name:
    """The answer that findings on a set serve."""
    return "traceless" if where == BOTH else "unharmed" if should_stay(where) else "forgotten"


@dataclass(frozen=True)
class Outcome:
    """A rule, the value found, what it was held against, and what follows."""

    answer: Name
    """The answer that the rule serves."""
    rule: str
    """What was asked."""
    result: Said
    """Whether it is so; of a condition, whether it is met."""
    value: float | None
    bound: float | None
    """What the value was held against: an ideal, the value before, or a bound that was asked for."""
    because: str = ""
    """What the numbers mean, in a sentence."""
    low: float | None = None
    """Of the 95 % interval of value - bound; None where a single number was compared."""
    high: float | None = None
    tolerance: float | None = None
    """The smallest difference that matters."""
    condition: bool = False
    """Whether it must be met, and shows nothing where it is."""
    against: bool = False
    """Whether the value is on the wrong side by more than the tolerance, if by no more than chance may bring."""


@dataclass(frozen=True)
class Answer:
    """One of the three: what is said, why, by which rules, and what was not measured for it."""

    said: Said
    reason: str
    rules: tuple[Outcome, ...] = ()
    unmeasured: tuple[str, ...] = ()
    """What was not measured, each with what to give in order to measure it."""


@dataclass(frozen=True)
class Verdict:
    """Is it forgotten, does the forgetting show, and is the rest unharmed?"""

    forgotten: Answer
    """What should be gone is known no better and no worse than by a model that never saw it."""
    traceless: Answer
    """An attacker who sees losses cannot tell the forgotten records from never seen ones."""
    unharmed: Answer
    """What should stay is known as well as before."""

    @property
    def is_met(self) -> bool:
        """Whether no answer is no."""
        return all(answer.said != "no" for _, answer in self)

    @property
    def rules(self) -> tuple[Outcome, ...]:
        """The rules of all answers."""
        return tuple(rule for _, answer in self for rule in answer.rules)

    def __iter__(self) -> Iterator[tuple[Name, Answer]]:
        """The answers by name, in reading order."""
        return iter((("forgotten", self.forgotten), ("traceless", self.traceless), ("unharmed", self.unharmed)))
