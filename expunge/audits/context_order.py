"""Does an answer that stands in the context depend on the order of what is read? (our own, after arXiv 2407.05483)

    gap = log p(answer | others, record, question) - log p(answer | record, others, question),   in nats for each token

What a prompt brings along, such as a retrieved document or the text of a guard, leaks or is obeyed as far as the model
still has it when the question comes. Attention reaches all of it; a recurrent state of fixed size has kept some. So a
leak that is tested in one order may be missed in the other. The record itself stands in the context here, question,
answer and all, before or after `others` records of the retain set, which are the same for both orders. A gap of 0 may
mean that the answer was found in both orders or in neither: `Loss` tells what is known without a context. Of records
that the model knows by heart it shows little. `Twice` of `guard/` around the model asks the same of contexts that are
read twice.
"""

from bisect import bisect
from dataclasses import dataclass, replace
from typing import Any, cast

from expunge.audits._kinds import SetAudit, mean_of, weights_of
from expunge.core.audit import Finding
from expunge.core.model import Batch, Model
from expunge.core.question import LogProbabilities
from expunge.core.request import Example, Request
from expunge.errors import UsageRefused
from expunge.internals.examples import Prompted, Tokenized


@dataclass(frozen=True)
class ContextOrder(SetAudit):
    """How much better an answer is known whose record was read last than one whose record was read first."""

    others: int = 8
    """How many other records stand in the context. More of them are more to forget the record over."""

    better = "lower"
    ideal = 0.0
    needs = "a question"
    definition = (
        "Mean log-probability of an answer's tokens, in nats, where its record is read last of a context, less that "
        "where it is read first."
    )

    def __post_init__(self) -> None:
        if self.others < 1:
            raise UsageRefused(f"The `others` of ContextOrder must be at least 1. Got {self.others!r}.")

    def applies(self, example: Example) -> bool:
        return isinstance(example, Prompted) and bool(example.prompt_tokens)

    def __call__(self, model: Model, request: Request) -> tuple[Finding, ...]:
        pool = sorted((e for e in request.retain if self.applies(e)), key=lambda e: e.record_digest())
        sets = self.applicable(request) if len(pool) > self.others else {}
        if sets:
            self.check(model)
        return tuple(self._compare(model, name, asked, pool) for name, asked in sets.items())

    def lacks(self, where: str, request: Request) -> str:
        few = len([e for e in request.retain if self.applies(e)]) <= self.others
        return (
            f"{self.name} needs more than {self.others} questions to retain" if few else super().lacks(where, request)
        )

    def _compare(self, model: Model, name: str, asked: Batch, pool: list[Example]) -> Finding:
        contexts = [self._context(example, pool) for example in asked]
        first = [_after([e, *others], e) for e, others in zip(asked, contexts, strict=True)]
        last = [_after([*others, e], e) for e, others in zip(asked, contexts, strict=True)]
        said = model.ask(LogProbabilities(), [*last, *first])
        when_last, when_first = said.mean(said.log_probs.double()).split(len(asked))
        scores = (when_last - when_first).tolist()
        made = self.finding(name, *mean_of(scores, asked), scores, self.ideal)
        return replace(made, weights=tuple(weights_of(asked) or ()))

    def _context(self, example: Example, pool: list[Example]) -> list[Example]:
        """The records of the pool that follow by their digests: the same whatever else is asked."""
        start = bisect(pool, example.record_digest(), key=lambda e: e.record_digest())
        turned = [e for e in (*pool[start:], *pool[:start]) if e.fact_digest() != example.fact_digest()]
        return turned[: self.others]


def _after(context: list[Example], asked: Example) -> Example:
    """The same question and answer, after all tokens of some records."""
    example: Any = asked
    read = tuple(token for each in context for token in cast(Tokenized, each).tokens)
    longer = replace(
        example,
        tokens=(*read, *example.tokens),
        first=len(read) + example.first,
        prompt_tokens=(*read, *example.prompt_tokens),
        alternatives=(),
    )
    return cast(Example, longer)
