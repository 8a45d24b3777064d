"""How often the whole answer would come out word for word, by greedy choice at every token."""

from dataclasses import dataclass
from typing import TYPE_CHECKING

from expunge.audits._kinds import ScoreAudit
from expunge.core.model import Batch, Model
from expunge.core.question import LogProbabilities

if TYPE_CHECKING:
    from jaxtyping import Float
    from torch import Tensor


@dataclass(frozen=True)
class ExactMatch(ScoreAudit):
    """Share of examples of which every row is right."""

    families = ("language",)
    definition = "Share of examples whose every labelled row, end token included, has the highest score."

    def score(self, model: Model, batch: Batch) -> "Float[Tensor, ' examples']":
        said = model.ask(LogProbabilities(), batch)
        return (said.mean(said.right.double()) == 1).float()
