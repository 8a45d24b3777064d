"""JRT-Prompt (Arora et al., 2024, "Just read twice", arXiv 2407.05483): each prompt is read again before the answer.

    answers to  A(C, Q, C, Q)  instead of  A(C, Q);   C, Q: all of the prompt, token for token

A recurrent model chooses what of the context its state keeps before it reads what is asked; on the second reading it
knows. No weight changes, so what a model says when asked once and when asked twice are two answers of one model: ask an
audit of both, or put it into a guard or around one. Needs room: a prompt becomes `times` times as long. Plain texts
have no prompt and stay as they are. Published on 16 recurrent models and 6 tasks: +11.0 points (standard error 1.3).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar, cast

from expunge.core.method import Method
from expunge.core.model import Batch, Model, Wrapper, answers
from expunge.core.predictions import Predictions, RowMoments, RowScores
from expunge.core.question import LogProbabilities, RowStatistics, Scores, Text
from expunge.core.request import Request
from expunge.errors import UsageRefused
from expunge.events import OnEvent, ignore_event
from expunge.internals.examples import Tokenized


@dataclass(frozen=True)
class Twice(Method):
    """Leaves the weights; every prompt is read several times."""

    times: int = 2
    """How often a prompt is read; 1 leaves it as it is."""

    def __post_init__(self) -> None:
        if self.times < 1:
            raise UsageRefused(f"The `times` of Twice must be at least 1. Got {self.times!r}.")

    def __call__(self, model: Model, request: Request, on_event: OnEvent = ignore_event) -> Model:
        return _Repeats(model.plain(), self.times)


@dataclass(frozen=True)
class _Repeats(Wrapper):
    """A model that is asked about repeated prompts."""

    inner: Model
    times: int
    transparent: ClassVar[bool] = False

    @answers(Scores)
    def score(self, question: Scores, batch: Batch) -> Predictions:
        return self.inner.ask(question, self._repeat(batch))

    @answers(LogProbabilities)
    def log_probabilities(self, question: LogProbabilities, batch: Batch) -> RowScores:
        return self.inner.ask(question, self._repeat(batch))

    @answers(RowStatistics)
    def row_statistics(self, question: RowStatistics, batch: Batch) -> RowMoments:
        return self.inner.ask(question, self._repeat(batch))

    @answers(Text)
    def write(self, question: Text, batch: Batch) -> list[str]:
        return self.inner.ask(question, self._repeat(batch))

    def _repeat(self, batch: Batch) -> Batch:
        """The examples with their prompts once more before them, as often as is left."""
        return [self._prefix(example) for example in cast(Sequence[Tokenized], batch)]

    def _prefix(self, example: Tokenized) -> Tokenized:
        more = example.prompt_tokens * (self.times - 1)
        longer: Any = replace(
            example,  # type: ignore[type-var]
            tokens=(*more, *example.tokens),
            first=len(more) + example.first,
            prompt_tokens=(*more, *example.prompt_tokens),
        )
        return cast(Tokenized, longer)
