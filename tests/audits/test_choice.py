"""Choice by hand: the right answer must beat every wrong one by its mean row; when guessing is what others get."""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import pytest
import torch

from expunge.audits.choice import Choice
from expunge.core.model import Model, answers
from expunge.core.predictions import RowScores
from expunge.core.question import LogProbabilities
from expunge.core.request import Request
from expunge.data.text import Passage
from tests.audits.scripted import Asked, findings, likely


def question(name: str, right: tuple[float, ...], *wrong: tuple[float, ...]) -> Asked:
    """A right answer and wrong ones, of rows of these probabilities."""
    options = tuple(likely(f"{name}{k}", *rows) for k, rows in enumerate(wrong))
    return Asked(name, tuple(map(math.log, right)), alternatives=options)


# Ragged: geometric means 0.5 against 0.4 and 0.3; 0.25 against 0.3; 0.6 against 0.5, 0.59 and 0.1.
KNOWN = question("known", (0.5, 0.5, 0.5), (0.4,), (0.3,) * 7)
MISSED = question("missed", (0.5, 0.125), (0.3,))
LONG = question("long", (0.6,) * 7, (0.5,), (0.59, 0.59), (0.1, 0.1, 0.1))


def test_it_is_the_share_of_questions_whose_right_answer_beats_every_wrong_one():
    found = findings(Choice(), forget=(KNOWN, MISSED, LONG))["forget"]
    assert found.scores == (1, 0, 1)
    assert found.value == pytest.approx(2 / 3)
    assert found.n == 3


def test_one_better_option_among_worse_ones_is_enough_to_miss():
    for place in range(3):
        wrong = [(0.1,), (0.1,), (0.1,)]
        wrong[place] = (0.51,)
        assert findings(Choice(), forget=(question("q", (0.5,), *wrong),))["forget"].value == 0


def test_answers_are_compared_by_their_mean_row_so_length_has_no_say():
    # sums: 7 log 0.6 = -3.6 against log 0.5 = -0.7
    assert findings(Choice(), forget=(question("long right", (0.6,) * 7, (0.5,)),))["forget"].value == 1
    assert findings(Choice(), forget=(question("long wrong", (0.5,), (0.6,) * 7),))["forget"].value == 0


def test_a_tie_is_not_known():
    assert findings(Choice(), forget=(question("tie", (0.5,), (0.5,)),))["forget"].value == 0
    assert findings(Choice(), forget=(question("tie", (0.5, 0.5), (0.5,), (0.1,)),))["forget"].value == 0


# What a model that cannot know the answers gets, where there is no holdout set with options


@dataclass(frozen=True)
class Reader(Model):
    """Knows that question k has the answer 100 + k, and likes some sentences better than others."""

    knows: float = 3.0
    """Nats that knowing an answer is worth."""
    likes: float = 0.0
    """Nats by which right answers are the better sentences, whatever is asked."""

    @answers(LogProbabilities)
    def log_probabilities(self, question: LogProbabilities, examples: Sequence[Passage]) -> RowScores:
        scores = [self._score(*example.tokens) for example in examples]
        return RowScores(
            labels=torch.zeros(len(scores), dtype=torch.long),
            example=torch.arange(len(scores)),
            examples=len(scores),
            share=None,
            weights=None,
            log_probs=torch.tensor(scores, dtype=torch.float64),
            right=torch.ones(len(scores), dtype=torch.bool),
        )

    def _score(self, asked: int, answer: int) -> float:
        taste = (answer * 7919) % 101 / 101  # which of the sentences it prefers by itself, by no rule
        return self.knows * (answer == 100 + asked) + self.likes * (100 <= answer < 200) + taste - 9

    def batches(self, examples: Sequence[Passage]) -> Iterator[list[int]]:
        yield list(range(len(examples)))


def asked_of(count: int, first: int = 0) -> tuple[Passage, ...]:
    """Questions whose right answer is 100 + k, and the wrong ones 200 + k, 300 + k and 400 + k."""

    def answer(k: int, token: int) -> Passage:
        return Passage(f"{k}-{token}", (k, token), 1, "", str(token), f"Question {k}?", (k,))

    right = range(first, first + count)
    return tuple(
        replace(answer(k, 100 + k), alternatives=tuple(answer(k, h + k) for h in (200, 300, 400))) for k in right
    )


def ideal_of(model: Reader, forget: tuple[Passage, ...], holdout: tuple[Passage, ...] = ()) -> float | None:
    [found] = [f for f in Choice()(model, Request(forget, holdout=holdout)) if f.set == "forget"]
    return found.ideal


def test_guessing_is_what_it_gets_where_other_questions_do_not_call_up_the_right_answers():
    assert Choice()(Reader(), Request(asked_of(40)))[0].value == 1.0
    assert ideal_of(Reader(), asked_of(40)) == 0.25
    assert ideal_of(Reader(), asked_of(40)[::-1]) == 0.25  # in any order


def test_guessing_is_not_what_it_gets_where_right_answers_are_the_better_sentences():
    assert ideal_of(Reader(likes=3.0), asked_of(40)) is None


def test_too_few_questions_do_not_tell():
    assert ideal_of(Reader(), asked_of(19)) is None


def test_a_holdout_set_with_options_tells_it_better():
    assert ideal_of(Reader(), asked_of(40), asked_of(4, first=60)) is None
    plain = tuple(replace(e, alternatives=()) for e in asked_of(4, first=60))
    assert ideal_of(Reader(), asked_of(40), plain) == 0.25


def test_of_what_should_stay_there_is_no_such_number():
    found = findings(Choice(), retain=(KNOWN,), holdout=(MISSED,), probes={"forget_other": (LONG,)})
    assert {f.ideal for f in found.values()} == {None}


def test_questions_without_wrong_answers_are_not_asked():
    found = findings(Choice(), forget=(KNOWN, likely("open", 0.1)), retain=(likely("also open", 0.1),))
    assert {name: each.n for name, each in found.items()} == {"forget": 1}


def test_a_model_that_remembers_reads_1_and_an_over_forgotten_one_0_beyond_guessing():
    remembers = findings(Choice(), forget=(question("a", (0.9,), (0.1,)), question("b", (0.9,) * 3, (0.1,))))["forget"]
    over = findings(Choice(), forget=(question("a", (1e-9,), (0.1,)), question("b", (1e-9,) * 3, (0.1,))))["forget"]
    assert (remembers.value, over.value) == (1, 0)
    for found in (remembers, over):
        assert found.low <= found.value <= found.high
