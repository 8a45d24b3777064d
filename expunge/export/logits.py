"""How far apart two language models are on some texts, in class scores."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

from expunge.core.model import Network
from expunge.core.question import Scores
from expunge.core.request import Example
from expunge.primitives.out_of_memory import in_fitting_batches

if TYPE_CHECKING:
    from jaxtyping import Float
    from torch import Tensor


@dataclass(frozen=True)
class LogitError:
    """Differences of the scores of every token of the vocabulary, over all rows."""

    mean: float
    """Mean absolute difference."""
    largest: float
    kl: float
    """Mean over rows of KL(first model, second), in nats."""
    rows: int
    texts: int


def compare_logits(one: Network, other: Network, examples: tuple[Example, ...]) -> LogitError:
    """The differences between two networks that have the same vocabulary."""

    def read(part: list[Example]) -> Float[Tensor, "rows 3"]:
        first, second = one.ask(Scores(), part), other.ask(Scores(), part)
        return torch.stack([first.each_row(number, second).cpu() for number in (_mean, _largest, _kl)], dim=1)

    with torch.inference_mode():
        found = [made for _, made in in_fitting_batches(None, examples, one.batches(examples), read)]
    rows = torch.cat(found).double()
    return LogitError(
        float(rows[:, 0].mean()), float(rows[:, 1].max()), float(rows[:, 2].mean()), len(rows), len(examples)
    )


def _mean(_labels: Tensor, one: Tensor, other: Tensor) -> Float[Tensor, " rows"]:
    return (one - other).abs().mean(dim=-1)


def _largest(_labels: Tensor, one: Tensor, other: Tensor) -> Float[Tensor, " rows"]:
    return (one - other).abs().amax(dim=-1)


def _kl(_labels: Tensor, one: Tensor, other: Tensor) -> Float[Tensor, " rows"]:
    first, second = one.double().log_softmax(dim=-1), other.double().log_softmax(dim=-1)
    return (first.exp() * (first - second)).sum(dim=-1)
