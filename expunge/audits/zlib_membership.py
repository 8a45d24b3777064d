"""Can an attacker who sees losses and knows what is easy to pack tell the two sets apart? (Carlini et al., 2021)

    score = -(mean loss of the labelled rows) / (bytes that zlib packs the answer to)

(arXiv 2012.07805, section 5.2.) A text that repeats itself has a low loss without having been read: dividing by what
is in it takes that away. Read of texts alone: the answer as its file has it, or the whole text; benchmarks pack what
the labelled tokens decode to, which may begin with a space.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, cast

import torch

from expunge.audits._kinds import MembershipAudit
from expunge.core.model import Batch, Model
from expunge.core.question import LogProbabilities
from expunge.core.request import Example
from expunge.internals.examples import Prompted
from expunge.primitives.memorisation import loss_by_packed_size

if TYPE_CHECKING:
    from jaxtyping import Float
    from torch import Tensor


@dataclass(frozen=True)
class ZlibMembership(MembershipAudit):
    """Membership inference by an example's mean loss over its size when packed."""

    definition = (
        "Area under the curve of forget against holdout texts by their mean loss over the bytes that zlib packs "
        "them to: 0.5 cannot be told apart, 1 is remembered, 0 is over-forgotten."
    )

    def applies(self, example: Example) -> bool:
        return isinstance(example, Prompted)

    def score(self, model: Model, batch: Batch) -> "Float[Tensor, ' examples']":
        said = model.ask(LogProbabilities(), batch)
        losses = (-said.mean(said.log_probs.double())).tolist()
        answers = [example.answer for example in cast(Sequence[Prompted], batch)]
        scores = [-loss_by_packed_size(*pair) for pair in zip(losses, answers, strict=True)]
        return torch.tensor(scores, dtype=torch.float64)
