"""A retain set of the model's own answers, where none was given."""

from dataclasses import replace

import pytest

from expunge.core.question import Text
from expunge.core.request import Request
from expunge.errors import DataRefused
from expunge.notation.parse import parse
from expunge.run.own_answers import (
    FEWEST,
    LONGEST,
    QUESTIONS,
    answer_plain_questions,
    expect_plain_answers,
    lacks_retain,
)
from tests.families import family_of

ASKED = QUESTIONS.read_text(encoding="utf-8").splitlines()


def speaking(monkeypatch, answers: list[str]):
    """The tiny Llama, which is made to answer so, again and again."""
    network, request = family_of("llama")
    plain = type(network).ask

    def ask(self, question, examples):
        said = (answers * len(examples))[: len(examples)]
        return said if isinstance(question, Text) else plain(self, question, examples)

    monkeypatch.setattr(type(network), "ask", ask)
    return network, replace(request, retain=())


def test_the_questions_are_distinct_and_short():
    assert len(set(ASKED)) == len(ASKED) == 64
    assert all(len(line) < 60 and line == line.strip() for line in ASKED)


def test_only_an_objective_that_reads_a_retain_set_lacks_it():
    reads, reads_none = parse("Finetune()"), parse("Finetune(objective=Ascent())")
    bare = Request(family_of("llama")[1].forget)
    assert lacks_retain(bare, reads.minimises)
    assert not lacks_retain(bare, reads_none.minimises)
    assert not lacks_retain(family_of("llama")[1], reads.minimises)
    assert not lacks_retain(bare, None)


def test_what_the_model_says_is_held_but_for_what_is_to_be_forgotten(monkeypatch):
    network, request = speaking(monkeypatch, ["It is red.", "  ", "I say: the LAKE is deep!"])
    forget = (replace(request.forget[0], answer="the lake"), *request.forget[1:])
    made = answer_plain_questions(network, replace(request, forget=forget))
    assert {example.answer for example in made} == {"It is red."}
    assert [example.question for example in made] == ASKED[::3]


def test_a_model_that_says_too_little_needs_a_retain_set(monkeypatch):
    network, request = speaking(monkeypatch, ["It is red."] * (FEWEST - 1) + [" "] * 64)
    with pytest.raises(DataRefused, match=f"plain questions are no substitute: {FEWEST - 1} hold text. Give --retain"):
        answer_plain_questions(network, request)
    picture, pictures = family_of("resnet")
    with pytest.raises(DataRefused, match="The objective reads the retain set, and none was given"):
        answer_plain_questions(picture, replace(pictures, retain=()))


def test_a_plan_counts_answers_as_long_as_the_longest_that_may_be_made():
    network, request = family_of("llama")
    objective, bare = parse("Finetune()").minimises, replace(request, retain=())
    expected = expect_plain_answers(network, bare, objective)
    assert len(expected.retain) == len(ASKED)
    assert min(example.rows for example in expected.retain) >= LONGEST
    assert expect_plain_answers(network, request, objective) is request
    assert expect_plain_answers(network, bare, None) is bare
