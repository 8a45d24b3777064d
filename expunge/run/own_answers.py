"""A retain set where none was given: what the model itself answers to plain questions about other things.

Training needs something that should stay, and a newcomer's first command has none. So the model is asked 64 short
questions that ship with the package (`data/plain_questions.txt`), and its own greedy answers become the retain set: so
it is held to what it says now, right or wrong. It says nothing about what stands near the forget set, which is what
forgetting harms first; the report says so, and that a set of one's own is better.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import cast

from expunge.core.model import Model, Network
from expunge.core.objective import Objective
from expunge.core.question import Text
from expunge.core.request import Request
from expunge.data import text
from expunge.data.records import Record
from expunge.errors import DataRefused
from expunge.internals.examples import Tokenized
from expunge.internals.wordings import find_words
from expunge.models.language import LanguageModel
from expunge.report.record import networks

QUESTIONS = Path(text.__file__).with_name("plain_questions.txt")
LONGEST = 32
"""Tokens after which an answer is cut."""
FEWEST = 8
"""Answers below which there is too little to hold on to."""


def lacks_retain(request: Request, objective: Objective | None) -> bool:
    """Whether an objective reads a retain set that the request does not have."""
    terms = objective.terms() if objective is not None else ()
    return not request.retain and any("retain" in term.needs for _, term in terms)


def answer_plain_questions(model: Model, request: Request) -> tuple[Tokenized, ...]:
    """The questions with the model's own answers, without those in which an answer of the forget set stands.

    Raises `DataRefused` where the model writes nothing to speak of.
    """
    network = next(networks(model))
    if not isinstance(network, LanguageModel) or not network.answers_to(Text):
        raise DataRefused("The objective reads the retain set, and none was given. Give --retain FILE.")
    questions = QUESTIONS.read_text(encoding="utf-8").splitlines()
    asked = text.encode_for(_records(questions, ["?"] * len(questions)), network, QUESTIONS)
    said = network.ask(Text(LONGEST), asked)
    secret = [e.answer for e in request.forget if isinstance(e, Tokenized)]
    kept = {
        question: answer.strip()
        for question, answer in zip(questions, said, strict=True)
        if answer.strip() and not any(find_words(answer, each) is not None for each in secret)
    }
    if len(kept) < FEWEST:
        raise DataRefused(
            f"No retain set was given, and the model's own answers to {len(questions)} plain questions are no "
            f"substitute: {len(kept)} hold text. Give --retain FILE."
        )
    return cast(tuple[Tokenized, ...], text.encode_for(_records([*kept], [*kept.values()]), network, QUESTIONS))


def expect_plain_answers(network: Network, request: Request, objective: Objective | None) -> Request:
    """For a plan: the request, where it lacks one with a retain set as long as the longest that would be made."""
    if not lacks_retain(request, objective) or not isinstance(network, LanguageModel):
        return request
    questions, word = QUESTIONS.read_text(encoding="utf-8").splitlines(), "word "
    longest = [f"{word * LONGEST}{line}" for line in range(len(questions))]
    return replace(request, retain=text.encode_for(_records(questions, longest), network, QUESTIONS))


def _records(questions: list[str], answers: list[str]) -> list[Record]:
    return [
        Record(line, {"id": f"own-answer-{line}", "question": question, "answer": answer})
        for line, (question, answer) in enumerate(zip(questions, answers, strict=True), start=1)
    ]
