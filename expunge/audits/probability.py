"""How likely the right answer is, length-normalised (Maini et al., 2024, TOFU, arXiv 2401.06121)."""

from dataclasses import dataclass
from typing import TYPE_CHECKING

from expunge.audits._kinds import ScoreAudit
from expunge.core.model import Batch, Model
from expunge.core.question import LogProbabilities

if TYPE_CHECKING:
    from jaxtyping import Float
    from torch import Tensor


@dataclass(frozen=True)
class Probability(ScoreAudit):
    """`P(answer | question) ** (1 / rows)`."""

    families = ("language", "vision", "any")
    definition = "Mean over examples of exp(mean log-probability of a labelled row), end token included (TOFU)."

    def score(self, model: Model, batch: Batch) -> "Float[Tensor, ' examples']":
        said = model.ask(LogProbabilities(), batch)
        return said.mean(said.log_probs).exp()
