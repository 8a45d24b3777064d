"""Can an attacker who sees only log-probabilities tell the forgotten from the never seen? (Shi et al., 2310.16789)"""

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

from expunge.audits._kinds import MembershipAudit
from expunge.core.model import Batch, Model
from expunge.core.question import LogProbabilities
from expunge.errors import UsageRefused
from expunge.primitives.memorisation import lowest_mean

if TYPE_CHECKING:
    from jaxtyping import Float
    from torch import Tensor


@dataclass(frozen=True)
class MinK(MembershipAudit):
    """Min-K% Prob: the mean of the least likely rows of each example."""

    fraction: float = 0.2
    """Share of each example's rows, least likely first, that the attacker averages; one row at least."""

    families = ("language",)
    definition = (
        "Area under the curve of forget against holdout examples by the mean log-probability of their least likely "
        "rows: 0.5 cannot be told apart, 1 is remembered, 0 is over-forgotten."
    )

    def __post_init__(self) -> None:
        if not 0 < self.fraction <= 1:
            raise UsageRefused(f"The `fraction` of MinK must lie in (0, 1]. Got {self.fraction!r}.")

    def score(self, model: Model, batch: Batch) -> "Float[Tensor, ' examples']":
        said = model.ask(LogProbabilities(), batch)
        return torch.stack([lowest_mean(rows, self.fraction) for rows in said.split(said.log_probs)])
