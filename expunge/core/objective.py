"""Objectives: loss functions of two models, the one in training and the original. Closed under + and *."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar, Literal

from torch import Tensor

from expunge.core.view import View

if TYPE_CHECKING:
    from jaxtyping import Float

    Scalar = Float[Tensor, ""]
else:
    Scalar = Tensor


class Objective(ABC):
    """A loss: a pure function of the answers of the model in training and of the original. It is minimised."""

    needs: ClassVar[tuple[str, ...]] = ()
    """What it reads: sets (forget, retain, stand_in), the original model (reference), hidden states, experts."""
    intention: ClassVar[Literal["removal", "suppression", "retention"]]
    """Whether it is meant to remove knowledge, only to suppress its output, or to retain what should stay."""

    @abstractmethod
    def __call__(self, now: View, before: View) -> Scalar:
        """The loss of one step. `before` is the original model, and runs without gradients by construction."""

    def terms(self) -> tuple[tuple[float, Objective], ...]:
        """The weighted terms that this objective is a sum of."""
        return ((1.0, self),)

    def __add__(self, other: Objective) -> Objective:
        return Sum((self, other)) if isinstance(other, Objective) else NotImplemented

    def __mul__(self, weight: float) -> Objective:
        if isinstance(self, Multiple):
            return Multiple(float(weight) * self.weight, self.part)
        return Multiple(float(weight), self)

    __rmul__ = __mul__


@dataclass(frozen=True)
class Sum(Objective):
    """Several objectives added up."""

    parts: tuple[Objective, ...]

    def __call__(self, now: View, before: View) -> Scalar:
        first, *rest = (part(now, before) for part in self.parts)
        return sum(rest, start=first)

    def terms(self) -> tuple[tuple[float, Objective], ...]:
        return tuple(term for part in self.parts for term in part.terms())

    def __repr__(self) -> str:
        return " + ".join(map(repr, self.parts))


@dataclass(frozen=True)
class Multiple(Objective):
    """An objective times a number."""

    weight: float
    part: Objective

    def __call__(self, now: View, before: View) -> Scalar:
        return self.weight * self.part(now, before)

    def terms(self) -> tuple[tuple[float, Objective], ...]:
        return tuple((self.weight * weight, term) for weight, term in self.part.terms())

    def __repr__(self) -> str:
        inner = f"({self.part!r})" if isinstance(self.part, Sum) else repr(self.part)
        return f"{self.weight!r} * {inner}"
