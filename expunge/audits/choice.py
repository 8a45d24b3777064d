"""Does the model prefer the right answer to plausible wrong ones?

It finds knowledge that no longer shows in what the model writes. A model that cannot know the answers need not guess:
right answers may be the better sentences. So what it would get is read off a holdout set with options; without
one, guessing (1 / options) is taken only where a model that is asked another record's question prefers the right answer
no more often than that.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, cast

import torch

from expunge.audits._kinds import ScoreAudit
from expunge.core.model import Batch, Model
from expunge.core.question import LogProbabilities
from expunge.core.request import Example, Request
from expunge.internals.examples import Tokenized
from expunge.primitives.standard import Standard, Tolerance

if TYPE_CHECKING:
    from jaxtyping import Float
    from torch import Tensor

ENOUGH = 20
"""Questions from which on answers put to other questions tell whether options are exchangeable."""
SLACK = 0.05
"""How much more often than by guessing the right answer may then be preferred."""


@dataclass(frozen=True)
class Choice(ScoreAudit):
    """Right-answer rate among the options of each question."""

    standard = Standard(gone=0.05, stay=Tolerance(0.02), retain=Tolerance(share=0.01), luck=True)
    families = ("language",)
    needs = "options: wrong answers"
    definition = (
        "Share of questions whose right answer has a higher length-normalised probability than each wrong option."
    )

    def applies(self, example: Example) -> bool:
        return bool(example.alternatives)

    def chance(self, model: Model, batch: Batch, request: Request) -> float | None:
        """Guessing, where there is no holdout set with options and the right sentences are no better than the wrong."""
        if any(map(self.applies, request.holdout)):
            return None
        shuffled = _shuffle(batch)
        if len(shuffled) < ENOUGH:
            return None
        guessing = sum(1 / (1 + len(e.alternatives)) for e in shuffled) / len(shuffled)
        preferred = float(self.score(model, shuffled).mean())
        asked = sum(1 / (1 + len(e.alternatives)) for e in batch) / len(batch)
        return asked if preferred <= guessing + SLACK else None

    def score(self, model: Model, batch: Batch) -> "Float[Tensor, ' examples']":
        asked = [text for example in batch for text in (example, *example.alternatives)]
        said = model.ask(LogProbabilities(), asked)
        sizes = [1 + len(example.alternatives) for example in batch]
        cut = said.mean(said.log_probs).split(sizes)
        return torch.stack([(options[0] > options[1:].max()).float() for options in cut])


def _shuffle(batch: Batch) -> list[Example]:
    """The answers and options of each record after the question of another; none that is longer than any as given."""
    texts = [e for e in batch if isinstance(e, Tokenized) and e.prompt_tokens]
    # By their digests, so that the order of the records changes nothing.
    texts.sort(key=lambda e: e.record_digest())
    longest = max((one.size for e in texts for one in (e, *e.alternatives)), default=0)
    asked = [_ask(e, other) for e, other in zip(texts, texts[1:] + texts[:1], strict=True)]
    return [e for e in asked if max(one.size for one in (e, *e.alternatives)) <= longest]


def _ask(example: Tokenized, other: Tokenized) -> Example:
    """An example's answers, after another's question."""

    def after(one: Any) -> Any:
        tokens = (*other.tokens[: other.first], *one.tokens[one.first :])
        return replace(one, tokens=tokens, first=other.first, prompt_tokens=other.prompt_tokens)

    options = tuple(map(after, cast(Sequence[Tokenized], example.alternatives)))
    return cast(Example, replace(after(example), alternatives=options))
