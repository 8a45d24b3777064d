"""Can an attacker who sees whole distributions tell the forgotten from the never seen? (Zhang et al., 2024, 2404.02936)

    score = mean over the least fraction of rows of  (log p(y) - mu) / sigma
    mu = sum over classes of p log p,   sigma^2 = sum over classes of p (log p)^2 - mu^2,  at least 1e-6

A token that was trained on is a mode of the distribution, so it stands out from its own alternatives, however likely
those are; Min-K looks at the probability alone. It costs a second reading of the class scores. Of texts alone: an image
is one row, and among few classes a sure model's row has no spread to measure by.
"""

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

from expunge.audits._kinds import MembershipAudit
from expunge.core.model import Batch, Model
from expunge.core.question import RowStatistics
from expunge.core.request import Example
from expunge.errors import UsageRefused
from expunge.internals.examples import Prompted
from expunge.primitives.memorisation import lowest_mean, standardise

if TYPE_CHECKING:
    from jaxtyping import Float
    from torch import Tensor


@dataclass(frozen=True)
class MinKPlusPlus(MembershipAudit):
    """Min-K%++: the mean of the lowest rows of each example, each centred and scaled by its own distribution."""

    fraction: float = 0.2
    """Share of each example's rows, lowest first, that the attacker averages; one row at least."""

    reads = (RowStatistics,)
    families = ("language",)
    definition = (
        "Area under the curve of forget against holdout examples by the mean of their lowest log-probabilities, "
        "standardised by each row's distribution: 0.5 cannot be told apart, 1 is remembered, 0 is over-forgotten."
    )

    def __post_init__(self) -> None:
        if not 0 < self.fraction <= 1:
            raise UsageRefused(f"The `fraction` of MinKPlusPlus must lie in (0, 1]. Got {self.fraction!r}.")

    def applies(self, example: Example) -> bool:
        return isinstance(example, Prompted)

    def score(self, model: Model, batch: Batch) -> "Float[Tensor, ' examples']":
        said = model.ask(RowStatistics(), batch)
        scaled = standardise(said.log_probs.double(), said.mean_log_prob.double(), said.variance.double())
        return torch.stack([lowest_mean(rows, self.fraction) for rows in said.split(scaled)])
