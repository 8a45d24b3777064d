"""How many tokens of an answer greedy choice gets right (Tirumala et al., 2022, arXiv 2205.10770).

    mean over texts of  (tokens whose score is the highest) / (tokens)

As open-unlearning defines it (Dorna et al., 2025, arXiv 2506.12618): the last labelled token, which ends an answer, is
not counted; with it the number is `Accuracy`, and `ExactMatch` asks for all of them. Of texts alone; those with one
labelled token are left out.
"""

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

from expunge.audits._kinds import ScoreAudit
from expunge.core.model import Batch, Model
from expunge.core.question import LogProbabilities
from expunge.core.request import Example
from expunge.internals.examples import Prompted
from expunge.primitives.memorisation import exact_memorisation

if TYPE_CHECKING:
    from jaxtyping import Float
    from torch import Tensor


@dataclass(frozen=True)
class ExactMemorization(ScoreAudit):
    """Share of an answer's tokens, the last one aside, that have the highest score."""

    needs = "a second labelled token"
    definition = (
        "Mean over texts of the share of labelled tokens, the last one aside, that have the highest score "
        "(as in open-unlearning)."
    )

    def applies(self, example: Example) -> bool:
        return isinstance(example, Prompted) and example.rows > 1

    def score(self, model: Model, batch: Batch) -> "Float[Tensor, ' examples']":
        said = model.ask(LogProbabilities(), batch)
        return torch.tensor([exact_memorisation(rows[:-1]) for rows in said.split(said.right)])
