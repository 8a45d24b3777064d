"""What a benchmark is: examples from its data, values of each, and numbers that are made of the values alone."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

from expunge.benchmarks._data import Data
from expunge.benchmarks._deep import measure_deeply
from expunge.benchmarks._numbers import Number
from expunge.benchmarks._reading import Item, read, write
from expunge.benchmarks._values import Values
from expunge.core.model import Batch, Model, Network, network_of
from expunge.core.request import Request
from expunge.errors import ModelRefused
from expunge.events import OnEvent
from expunge.models.language import LanguageModel
from expunge.runtime.cached_model import CachedModel


@dataclass(frozen=True)
class Form:
    """A form in which other people keep results of a benchmark."""

    file: str
    """What a result is called in that form."""
    read: Callable[[Path], Values]
    """The values in a file of it. Raises `DataRefused`."""
    write: Callable[[Values, Sequence[Number]], str]


@dataclass(frozen=True)
class Benchmark(ABC):
    """A benchmark, as one definition of it has it. Its fields are its settings."""

    home: ClassVar[str]
    """Its data: the name on the hub, and after the last slash that of the folder."""
    axes: ClassVar[tuple[tuple[str, str], tuple[str, str]]]
    """Name and set of the numbers that its plot has: how far forgotten, and what is left."""

    splits: ClassVar[Mapping[str, Mapping[str, tuple[str, ...]]]] = {}
    """Requests to forget, by name: of each set, and of probes that are kept, the names that its file may have."""
    remainders: ClassVar[Mapping[str, tuple[str, tuple[str, ...]]]] = {}
    """Splits to train on that need no file: the file that each is a part of, and the names of what it leaves out."""
    form: ClassVar[Form | None] = None
    """The form of other people's results that are read as references."""

    @abstractmethod
    def measure(self, model: Model, data: Data, known: CachedModel, on_event: OnEvent) -> Values:
        """The values of a model; `known` remembers what it answers. Raises a `Refusal`."""

    @abstractmethod
    def numbers(self, values: Values, references: Mapping[str, Values]) -> list[Number]:
        """The numbers, from values alone: of the model, and against each reference."""


@dataclass(frozen=True)
class TextBenchmark(Benchmark):
    """A benchmark of language models."""

    @abstractmethod
    def items(self, data: Data, network: LanguageModel) -> list[Item]:
        """Every text, and what is measured of it. Raises `DataRefused`."""

    @abstractmethod
    def score(self, items: Sequence[Item], written: Sequence[str]) -> list[Mapping[str, float]]:
        """What is measured of each continuation."""

    def measure(self, model: Model, data: Data, known: CachedModel, on_event: OnEvent) -> Values:
        network = network_of(model, type(self).__name__)
        if not isinstance(network, LanguageModel):
            raise ModelRefused(f"{type(self).__name__} is for language models, and this is a {type(network).__name__}.")
        items = self.items(data, network)
        values = read(known, items, network.tokenizer, on_event)
        return values.join(write(known, items, self.score, on_event)).join(measure_deeply(model, items, on_event))


@dataclass(frozen=True)
class Stage:
    """A request to forget, one of several that come one after the other, and what is measured once it is done."""

    request: Request
    """What a method is given."""
    sets: Mapping[str, Batch]
    """What is measured, by set."""
    learnt: Batch
    """Examples that the original model was trained on, forgotten ones among them."""


@dataclass(frozen=True)
class RequestBenchmark(Benchmark):
    """A benchmark that draws the requests itself, so that it can be told which methods to try."""

    @abstractmethod
    def stages(self, data: Data, network: Network) -> list[Stage]:
        """The requests in their order. Raises a `Refusal`."""

    @abstractmethod
    def examine(self, model: Model, stage: Stage, known: CachedModel) -> Values:
        """The values of a model after a stage; `known` remembers what it answers."""

    def measure(self, model: Model, data: Data, known: CachedModel, on_event: OnEvent) -> Values:
        network = network_of(model, type(self).__name__)
        return self.examine(model, self.stages(data, network)[-1], known)
