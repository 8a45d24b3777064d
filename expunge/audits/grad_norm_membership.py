"""Can an attacker who holds the weights tell the two sets apart by how hard each example pulls at them?

    score = -(mean over weight tensors of the Euclidean norm of the gradient of the example's mean loss)

What was trained on lies near a minimum, so its gradient is small. The form is open-unlearning's (Dorna et al., 2025,
arXiv 2506.12618), dropout off and every labelled row counted. It needs the network in one process, and a backward pass
for each example.
"""

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

from expunge.audits._kinds import MembershipAudit
from expunge.core.model import Batch, Model, network_of
from expunge.core.question import Scores
from expunge.errors import UsageRefused
from expunge.internals.gradients import Slopes, loss
from expunge.primitives.memorisation import norm_of_gradient
from expunge.runtime.processes import world_size

if TYPE_CHECKING:
    from jaxtyping import Float
    from torch import Tensor


@dataclass(frozen=True)
class GradNormMembership(MembershipAudit):
    """Membership inference by the size of an example's gradient."""

    reads = (Scores,)
    definition = (
        "Area under the curve of forget against holdout examples by the mean norm of the gradient of a weight tensor: "
        "0.5 cannot be told apart, 1 is remembered, 0 is over-forgotten."
    )

    def score(self, model: Model, batch: Batch) -> "Float[Tensor, ' examples']":
        if world_size() > 1:
            raise UsageRefused(f"{self.name} takes gradients, for which one process must hold the model. Start one.")
        slopes = Slopes(network_of(model, self.name))
        norms = []
        for example in batch:
            slopes.add([example], loss)
            norms.append(norm_of_gradient(slope for _, slope in slopes.take()))
        return -torch.tensor(norms, dtype=torch.float64)
