"""Does the model prefer the right answer to plausible wrong ones?

It finds knowledge that no longer shows in what the model writes, and guessing has a known rate: 1 / options.
"""

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

from expunge.audits._kinds import ScoreAudit
from expunge.core.model import Batch, Model
from expunge.core.question import LogProbabilities
from expunge.core.request import Example

if TYPE_CHECKING:
    from jaxtyping import Float
    from torch import Tensor


@dataclass(frozen=True)
class Choice(ScoreAudit):
    """Right-answer rate among the options of each question."""

    families = ("language",)
    needs = "options: wrong answers"
    definition = (
        "Share of questions whose right answer has a higher length-normalised probability than each wrong option."
    )

    def applies(self, example: Example) -> bool:
        return bool(example.alternatives)

    def chance(self, batch: Batch) -> float | None:
        return sum(1 / (1 + len(e.alternatives)) for e in batch) / len(batch)

    def score(self, model: Model, batch: Batch) -> "Float[Tensor, ' examples']":
        asked = [text for example in batch for text in (example, *example.alternatives)]
        said = model.ask(LogProbabilities(), asked)
        sizes = [1 + len(example.alternatives) for example in batch]
        cut = said.mean(said.log_probs).split(sizes)
        return torch.stack([(options[0] > options[1:].max()).float() for options in cut])
