"""Models that say what they are given, on ragged batches, in float64."""

from collections.abc import Iterator
from dataclasses import dataclass

import pytest
import torch
from torch import Tensor

from expunge.core.model import Batch, Model, answers
from expunge.core.predictions import Predictions
from expunge.core.question import Scores
from expunge.core.view import View
from expunge.primitives import class_scores as rows
from expunge.primitives.class_scores import Head

LENGTHS = (1, 4, 2)
CLASSES = 7


@dataclass(frozen=True)
class Asked:
    """The k-th example of a set."""

    id: str
    set: str
    size: int = 1
    rows: int = 1
    weight: float = 1.0


class Says(Model):
    """A model whose answers are known beforehand."""

    def __init__(self, sets: dict[str, Predictions]) -> None:
        self.sets = sets

    @answers(Scores)
    def scores(self, question: Scores, batch: list[Asked]) -> Predictions:
        return self.sets[batch[0].set]

    def batches(self, examples: Batch) -> Iterator[list[int]]:
        yield list(range(len(examples)))


def said(scores: list[list[list[float]]] | Tensor, lengths: tuple[int, ...] = (), labels: Tensor | None = None):
    """Predictions of the given scores: for each example its rows; the label is class 0 unless told."""
    if not isinstance(scores, Tensor):
        lengths = tuple(map(len, scores))
        scores = torch.tensor([row for example in scores for row in example], dtype=torch.float64)
    owner = torch.repeat_interleave(torch.arange(len(lengths)), torch.tensor(lengths))
    labels = torch.zeros(len(owner), dtype=torch.long) if labels is None else labels
    return Predictions(labels, owner, len(lengths), None, scores.requires_grad_())


@pytest.fixture
def given():
    """`given(forget=[[[1.0, 2.0]]])`: a view of a model that gives these scores."""

    def view(**sets: list[list[list[float]]]) -> View:
        return drawn_view({name: said(scores) for name, scores in sets.items()})

    return view


def drawn_view(sets: dict[str, Predictions]) -> View:
    return View(Says(sets), {name: [Asked(str(k), name) for k in range(p.examples)] for name, p in sets.items()})


@pytest.fixture(params=["scores", "states", "moving head"])
def drawn(request, monkeypatch):
    """`drawn(seed)`: a view with ragged sets drawn at random. Scores are given as such, or as states and a matrix,
    which then is met three rows at a time."""
    monkeypatch.setattr(rows, "CHUNK", {"cpu": 3 * CLASSES})

    def view(seed: int, lengths: tuple[int, ...] = LENGTHS, spread: float = 1.5) -> View:
        draw = torch.Generator().manual_seed(seed)

        def numbers(*shape: int) -> Tensor:
            return spread * torch.randn(*shape, generator=draw, dtype=torch.float64)

        sets = {}
        for name in ("forget", "retain", "stand_in"):
            count = sum(lengths)
            # Labels are those of any seed: now and before are asked the same.
            labels = torch.randint(CLASSES, (count,), generator=torch.Generator().manual_seed(len(name)))
            made = said(numbers(count, CLASSES if request.param == "scores" else 5), lengths, labels)
            if request.param != "scores":
                matrix = numbers(CLASSES, 5).requires_grad_(request.param == "moving head")
                made = Predictions(made.labels, made.example, made.examples, None, made.states, Head(matrix))
            sets[name] = made
        return drawn_view(sets)

    return view
