"""Perplexity by hand, inside its interval to the last digit, and of a model that is lost beyond counting."""

import math
from collections.abc import Iterator
from dataclasses import dataclass

import pytest
import torch

from expunge.audits.perplexity import Perplexity
from expunge.core.model import Model, answers
from expunge.core.predictions import Predictions
from expunge.core.question import Scores
from expunge.core.request import Request


@dataclass(frozen=True)
class Text:
    """A text of which the model loses `losses` nats, token by token."""

    id: str
    losses: tuple[float, ...]
    alternatives: tuple = ()
    weight: float = 1.0

    @property
    def rows(self) -> int:
        return len(self.losses)

    size = rows

    def record_digest(self) -> str:
        return self.id


class Loses(Model):
    """Two classes; the right one loses by so much that its log-probability is minus the loss wanted."""

    @answers(Scores)
    def scores(self, question: Scores, batch: list[Text]) -> Predictions:
        losses = torch.tensor([loss for text in batch for loss in text.losses], dtype=torch.float64)
        # log(1 / (1 + e^x)) = -loss  <=>  x = log(e^loss - 1) = loss + log(1 - e^-loss)
        wrong = losses + torch.log(-torch.expm1(-losses))
        owner = torch.tensor([k for k, text in enumerate(batch) for _ in text.losses])
        labels = torch.zeros(len(losses), dtype=torch.long)
        return Predictions(labels, owner, len(batch), None, torch.stack([torch.zeros_like(wrong), wrong], -1))

    def batches(self, examples: list[Text]) -> Iterator[list[int]]:
        yield list(range(len(examples)))


def finding(*texts: tuple[float, ...]):
    [found] = Perplexity()(Loses(), Request(forget=tuple(Text(str(k), losses) for k, losses in enumerate(texts))))
    return found


def test_it_is_the_geometric_mean_over_texts_not_over_tokens():
    found = finding((1.0,), (2.0, 4.0))
    assert found.value == pytest.approx(math.exp((1 + 3) / 2), rel=1e-12)
    assert found.scores == pytest.approx((math.exp(1), math.exp(3)), rel=1e-12)
    assert found.n == 2


@pytest.mark.parametrize("count", range(1, 12))
@pytest.mark.parametrize("loss", [0.1, 0.3, 1.7])
def test_equal_texts_have_an_interval_that_holds_the_value(count, loss):
    # Three times 0.1, summed and divided by 3, is 0.10000000000000002 or 0.1, as it is summed.
    found = finding(*[(loss,)] * count)
    assert found.low <= found.value <= found.high


def test_a_model_that_is_lost_beyond_counting_is_told_as_infinite_and_stops_nothing():
    found = finding((800.0,), (900.0,))  # exp(710) is more than a float holds
    assert found.value == found.low == found.high == math.inf
    assert found.scores == (math.inf, math.inf)
