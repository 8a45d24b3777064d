"""Can an attacker who sees only losses tell the forgotten from the never seen? (Yeom et al., 2018, arXiv 1709.01604)"""

from dataclasses import dataclass
from typing import TYPE_CHECKING

from expunge.audits._kinds import MembershipAudit
from expunge.core.model import Batch, Model
from expunge.core.question import LogProbabilities

if TYPE_CHECKING:
    from jaxtyping import Float
    from torch import Tensor


@dataclass(frozen=True)
class LossMembership(MembershipAudit):
    """Membership inference by the mean log-probability of an example."""

    families = ("language", "vision", "any")
    definition = (
        "Area under the curve of forget against holdout examples by mean log-probability: "
        "0.5 cannot be told apart, 1 is remembered, 0 is over-forgotten."
    )

    def score(self, model: Model, batch: Batch) -> "Float[Tensor, ' examples']":
        said = model.ask(LogProbabilities(), batch)
        return said.mean(said.log_probs)
