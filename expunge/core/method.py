"""Methods: functions from a model to a model. Fine-tuning, an edit in one step and an attack are such functions."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, fields, is_dataclass, replace
from typing import TYPE_CHECKING, ClassVar, Self, final

from expunge.core.model import Model, Network, network_of
from expunge.core.request import Request
from expunge.errors import UsageRefused
from expunge.events import OnEvent, ignore_event
from expunge.primitives.rehearsal import Rehearsal

if TYPE_CHECKING:
    from expunge.core.objective import Objective


class Method(ABC):
    """`(model, request) -> model`. The model that is passed in is not changed.

    Methods compose: `audit(attack(method(model, request), request), request)`.
    """

    @abstractmethod
    def __call__(self, model: Model, request: Request, on_event: OnEvent = ignore_event) -> Model:
        """The changed model. `on_event` is called with each event of the run."""

    @property
    def name(self) -> str:
        """The class's name, which refusals and reports use."""
        return type(self).__name__

    resumable: ClassVar[bool] = False
    """Whether a run of it can go on from a checkpoint."""

    @property
    def minimises(self) -> Objective | None:
        """The objective whose sets the request must have; None where there is none."""
        return None

    def with_seed(self, seed: int) -> Self:
        """The same method with another seed. Raises `UsageRefused` where it draws nothing by chance."""
        raise UsageRefused(f"--seed: {self.name} draws nothing by chance. Leave --seed out.")

    def fit(self, model: Model, request: Request, on_event: OnEvent = ignore_event) -> Self:
        """The method with nothing left open for this model and request. Refuses, before any audit, what cannot run."""
        parts = self._parts() if isinstance(model.plain(), Network) else []
        return self._with({name: part.fit(model, request, on_event) for name, part in parts})

    def rehearse(self, model: Model, request: Request, rehearsal: Rehearsal) -> Model:
        """Do what a run does, on a narrow random network that notes each pass: `expunge plan` counts those.

        A method with many equal steps takes few of them here, and says how many each stands for. One that is made of
        other methods rehearses those.
        """
        return self._with({name: _Rehearsed(part, rehearsal) for name, part in self._parts()})(model, request)

    def cheaper(self) -> Iterator[tuple[str, Self]]:
        """Variants that need less memory, each with what to write for it; from what costs least to what costs most."""
        for name, part in self._parts():
            for said, other in part.cheaper():
                yield f"{said} in {name}", self._with({name: other})

    def _with(self, parts: Mapping[str, Method]) -> Self:
        return replace(self, **parts) if parts else self  # type: ignore[type-var]

    def _parts(self) -> list[tuple[str, Method]]:
        names: list[str] = [field.name for field in fields(self)] if is_dataclass(self) else []
        return [(name, part) for name in names if isinstance(part := getattr(self, name), Method)]


@dataclass(frozen=True)
class _Rehearsed(Method):
    """A method that is rehearsed where it is called."""

    method: Method
    rehearsal: Rehearsal

    def __call__(self, model: Model, request: Request, on_event: OnEvent = ignore_event) -> Model:
        return self.method.rehearse(model, request, self.rehearsal)


class WeightMethod(Method):
    """A method that changes weights. A model that is not a network is refused."""

    @final
    def __call__(self, model: Model, request: Request, on_event: OnEvent = ignore_event) -> Model:
        return self.change(network_of(model.plain(), self.name), request, on_event)

    @abstractmethod
    def change(self, network: Network, request: Request, on_event: OnEvent) -> Model:
        """The changed network, or an adapted one; `network` itself is not changed."""
