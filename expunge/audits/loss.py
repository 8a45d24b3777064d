"""How surprised the model is by the right answer: cross-entropy of each example, in nats for each row."""

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

from expunge.audits._kinds import ScoreAudit
from expunge.core.model import Batch, Model
from expunge.core.question import LogProbabilities
from expunge.primitives.standard import Standard, Tolerance

if TYPE_CHECKING:
    from jaxtyping import Float
    from torch import Tensor


@dataclass(frozen=True)
class Loss(ScoreAudit):
    """Mean negative log-probability."""

    better = "lower"
    standard = Standard(gone=math.log(2), stay=Tolerance(0.1, 0.05), text=Tolerance(math.log(1.03)))
    families = ("language", "vision", "any")
    definition = "Mean over examples of the mean negative log-probability of a labelled row (end token included), nats."

    def score(self, model: Model, batch: Batch) -> "Float[Tensor, ' examples']":
        said = model.ask(LogProbabilities(), batch)
        return -said.mean(said.log_probs)
