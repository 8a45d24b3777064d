"""How much of the right answer the model writes: ROUGE-L recall of its greedy continuation (Lin, 2004; as in TOFU)."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, cast

import torch

from expunge.audits._kinds import ScoreAudit
from expunge.core.model import Batch, Model
from expunge.core.question import Text
from expunge.core.request import Example
from expunge.errors import UsageRefused
from expunge.internals.examples import Prompted
from expunge.primitives.overlap import rouge
from expunge.primitives.standard import Standard, Tolerance

if TYPE_CHECKING:
    from jaxtyping import Float
    from torch import Tensor


@dataclass(frozen=True)
class Rouge(ScoreAudit):
    """ROUGE-L recall, stemmed."""

    max_new_tokens: int = 24
    """Where a continuation that does not end by itself is cut."""

    reads = (Text,)
    standard = Standard(gone=0.05, stay=Tolerance(0.05), less_is_fine=True)
    families = ("language",)
    needs = "a question"
    definition = "Mean ROUGE-L recall (stemmed) of the greedy continuation against the right answer (as in TOFU)."

    def __post_init__(self) -> None:
        if self.max_new_tokens < 1:
            raise UsageRefused(f"The `max_new_tokens` of Rouge must be at least 1. Got {self.max_new_tokens!r}.")

    def applies(self, example: Example) -> bool:
        return isinstance(example, Prompted) and bool(example.prompt_tokens)

    def score(self, model: Model, batch: Batch) -> "Float[Tensor, ' examples']":
        written = model.ask(Text(self.max_new_tokens), batch)
        answers = [example.answer for example in cast(Sequence[Prompted], batch)]
        return torch.tensor([each.recall for each in rouge(answers, written)])
