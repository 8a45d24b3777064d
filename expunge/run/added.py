"""Probes that nobody gave: a model that lost everything else must not pass because nothing else was asked.

Where no probe says what should stay, a language model is asked 49 questions of general knowledge and 6 plain texts
that ship with the package, under the names `general` and `neutral`. The retain set is no such probe: training reads it.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from expunge.core.model import Model
from expunge.core.request import Example, Request
from expunge.data import text
from expunge.errors import Refusal
from expunge.events import Note, OnEvent, ignore_event
from expunge.internals.examples import Tokenized
from expunge.models.language import LanguageModel
from expunge.report.answers import asks_what_stays
from expunge.report.record import networks

NAMES = ("general", "neutral")
PLACE = Path(text.__file__).parent
"""The folder that has a file for each of them."""


def add_probes(model: Model, request: Request, on_event: OnEvent = ignore_event) -> tuple[Request, tuple[str, ...]]:
    """The request with the probes that its model can be asked, if it has none that should stay; and their names."""
    network = next(iter(networks(model)), None)
    if not isinstance(network, LanguageModel) or any(map(asks_what_stays, request.probes)):
        return request, ()
    added: dict[str, tuple[Example, ...]] = {}
    for name in NAMES:
        path = PLACE / f"{name}.jsonl"
        try:
            examples = text.encode_for(text.load(path), network, path)
        except Refusal as error:  # a model that reads short texts only, or whose vocabulary is another
            on_event(Note(f"The probe {name} that comes with expunge could not be asked: {error.line()}"))
            continue
        added[name] = _leave_out(examples, request)
    added = {name: examples for name, examples in added.items() if examples}
    return replace(request, probes={**request.probes, **added}), tuple(added)


def _leave_out(examples: tuple[Example, ...], request: Request) -> tuple[Example, ...]:
    """The examples that no set of the request asks already."""
    known = {_question(e) for given in request.sets().values() for e in given}
    return tuple(e for e in examples if _question(e) not in known)


def _question(example: Example) -> str:
    asked = example.question or example.answer if isinstance(example, Tokenized) else example.record_digest()
    return " ".join(asked.casefold().split())
