"""What a benchmark is: texts from its data, values of each text, and numbers that are made of the values alone."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

from expunge.benchmarks._data import Data
from expunge.benchmarks._numbers import Number
from expunge.benchmarks._reading import Item, gradient_norms, read, write
from expunge.benchmarks._values import Values
from expunge.core.model import Model, network_of
from expunge.events import OnEvent
from expunge.primitives.overlap import rouge
from expunge.runtime.cached_model import CachedModel


@dataclass(frozen=True)
class Benchmark(ABC):
    """A benchmark of language models, as one definition of it has it. Its fields are its settings."""

    home: ClassVar[str]
    """Its data: the name on the hub, and after the last slash that of the folder."""
    axes: ClassVar[tuple[tuple[str, str], tuple[str, str]]]
    """Name and set of the numbers that its plot has: how far forgotten, and what is left."""

    @abstractmethod
    def items(self, data: Data, tokenizer: Any) -> list[Item]:
        """Every text, and what is measured of it. Raises `DataRefused`."""

    @abstractmethod
    def numbers(self, values: Values, references: Mapping[str, Values]) -> list[Number]:
        """The numbers, from values alone: of the model, and against each reference."""

    def score(self, right: Sequence[str], written: Sequence[str]) -> list[Mapping[str, float]]:
        """What is measured of each continuation."""
        return [
            {"rouge": each.recall, "rouge_f1": each.f1, "rouge_words": each.words} for each in rouge(right, written)
        ]

    def measure(self, model: Model, data: Data, known: CachedModel, on_event: OnEvent) -> Values:
        """The values of a model; `known` remembers what it answers."""
        network: Any = network_of(model, type(self).__name__)
        items = self.items(data, network.tokenizer)
        values = read(known, items, network.tokenizer, on_event)
        return values.joined(write(known, items, self.score, on_event)).joined(gradient_norms(model, items))

    def read_reference(self, path: Path) -> Values:
        """The values in somebody's log of a model. Raises `DataRefused`."""
        return Values.read(path)

    def foreign(self, values: Values, numbers: list[Number]) -> Mapping[str, str]:
        """The result in other people's forms: texts by the names of files."""
        return {}
