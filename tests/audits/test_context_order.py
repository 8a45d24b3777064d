"""The order of a context, worked by hand on a model that forgets a little with each token that it reads."""

from collections.abc import Iterator
from dataclasses import dataclass

import pytest
import torch

from expunge.audits.context_order import ContextOrder
from expunge.core.model import Batch, Model, answers
from expunge.core.predictions import RowScores
from expunge.core.question import LogProbabilities
from expunge.core.request import Request
from expunge.data.text import Passage
from expunge.errors import ModelRefused, UsageRefused
from expunge.guard.twice import Twice
from tests.families import llama, text_request


@dataclass(frozen=True)
class Fades(Model):
    """Knows an answer by e^-d, d a tenth of the tokens since it was last read; e^-9 where it was not."""

    @answers(LogProbabilities)
    def recall(self, question: LogProbabilities, batch: Batch) -> RowScores:
        values = torch.cat([torch.full((e.rows,), self._value(e)) for e in batch])
        owner = torch.tensor([k for k, e in enumerate(batch) for _ in range(e.rows)])
        return RowScores(torch.zeros_like(owner), owner, len(batch), None, log_probs=values, right=values > -1)

    def _value(self, example: Passage) -> float:
        answer, before = example.tokens[example.first :], example.tokens[: example.first]
        ends = [k for k in range(len(answer), len(before) + 1) if before[k - len(answer) : k] == answer]
        return -(len(before) - ends[-1]) / 10 if ends else -9.0

    def batches(self, examples: Batch) -> Iterator[list[int]]:
        yield list(range(len(examples)))


def record(number: int, size: int) -> Passage:
    """A prompt of two tokens, the second its own, and an answer of `size` tokens of its own."""
    own = tuple(range(100 * number, 100 * number + size))
    return Passage(f"r{number}", (1, 90 + number, *own), 2, "?", f"{own}", f"{number}", (1, 90 + number))


FORGET, RETAIN = (record(1, 1), record(2, 3)), (record(3, 2), record(4, 2), record(5, 2))


def test_the_gap_is_what_the_others_that_were_read_since_cost():
    found = {f.set: f for f in ContextOrder(others=2)(Fades(), Request(FORGET, RETAIN))}
    assert found["forget"].scores == pytest.approx((0.8, 0.8))  # two records of four tokens, a tenth each
    assert found["retain"].scores == pytest.approx((0.8, 0.8, 0.8))  # the other two of three
    assert [f.better for f in found.values()] == ["ideal", "lower"]


def test_it_is_asked_of_a_model_that_reads_twice():
    """Such a model gains nothing by it: what stands between the last reading and the question is the same."""
    twice = Twice()(Fades(), Request(FORGET, RETAIN))
    found = {f.set: f for f in ContextOrder(others=2)(twice, Request(FORGET, RETAIN))}
    assert found["forget"].value == pytest.approx(0.8)


def test_the_same_others_are_read_whatever_else_is_asked():
    network, request = llama(), text_request()
    whole = {f.set: f for f in ContextOrder(others=1)(network, request)}
    some = {f.set: f for f in ContextOrder(others=1)(network, Request(request.forget[1:2], request.retain[::-1]))}
    assert some["forget"].scores == pytest.approx(whole["forget"].scores[1:2], abs=1e-5)


def test_it_says_what_it_lacks():
    audit = ContextOrder(others=3)
    assert audit(Fades(), Request(FORGET, RETAIN)) == ()
    assert "needs more than 3 questions to retain" in audit.lacks("forget", Request(FORGET, RETAIN))
    with pytest.raises(UsageRefused, match="at least 1. Got 0"):
        ContextOrder(others=0)
    with pytest.raises(ModelRefused, match=r"A text has \d+ tokens; LlamaForCausalLM reads 64"):
        ContextOrder(others=5)(llama(), text_request())
