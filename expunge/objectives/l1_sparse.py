"""The penalty of l1-sparse unlearning (Jia et al., 2023, NeurIPS, arXiv 2304.04934): sparse networks forget better.

    loss = (1 - (t - 1) / falls) * sum over trainable weights of |w|,   t the step from 1, never below 0

The paper's method is `RetainNLL()` beside a small multiple of it: training goes on without the forgotten, which fade,
in a network that has less room for them. Of its schedules the falling one was best: `falls` is then the run's length,
and 0 keeps the weight. With an adapter only the adapter's own weights are made small, and the network's are not.

Needs nothing but the weights. Meant as removal. Published: weight 5e-4, SGD at 0.01, 10 epochs. It adds up over the
weights, so a larger network needs a smaller one. A class, which fine-tuning hardly forgets, it hardly forgets either.
"""

from dataclasses import dataclass
from typing import ClassVar

import torch

from expunge.core.objective import Objective, Scalar
from expunge.core.view import View
from expunge.notation.recipes import CIFAR, Recipe
from expunge.objectives._weights import trainable_weights
from expunge.primitives.settings import check_least

PUBLISHED = Recipe(
    "L1Sparse",
    "vision",
    "Finetune(objective=RetainNLL() + 0.0005 * L1Sparse(), adapter=Full(), learning_rate=0.01, "
    f"steps=Epochs(count=10.0, of='retain'), {CIFAR})",
    "Jia et al., 2023: weight 5e-4 on CIFAR-10, SGD at 0.01 for 10 epochs of the retain set in batches of 256. Their "
    "weight falls to 0 over the run, for which `falls` has to be its number of steps; here it stays.",
    "L1-sparse (Jia et al., 2023, NeurIPS, arXiv 2304.04934): fine-tuning on the retain set under an l1 penalty.",
)


@dataclass(frozen=True)
class L1Sparse(Objective):
    """Keep the sum of the weights' sizes small."""

    needs: ClassVar = ()
    intention: ClassVar = "removal"

    falls: int = 0
    """Steps over which its weight falls to 0 in a line; 0: it stays."""

    def __post_init__(self) -> None:
        check_least(self, falls=0)

    def __call__(self, now: View, before: View) -> Scalar:
        weights = trainable_weights(now, "L1Sparse").values()
        left = max(0.0, 1 - max(0, now.run.step - 1) / self.falls) if self.falls else 1.0
        return left * now.fraction("forget") * torch.stack([weight.abs().sum() for weight in weights]).sum()
