"""How much of an answer need not be given for the rest to come out (Carlini et al., 2021, arXiv 2012.07805).

    1 - k / n,  k the least number of tokens that must be given so that greedy choice is right at all n - k others

As open-unlearning defines it (Dorna et al., 2025, arXiv 2506.12618): the last labelled token, which ends an answer, is
not counted, and an answer whose last counted token is wrong has 1 / n, since the loop there ends at it. The model is
given the right tokens throughout, so nothing is written. Of texts alone; those with one labelled token are left out.
"""

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

from expunge.audits._kinds import ScoreAudit
from expunge.core.model import Batch, Model
from expunge.core.question import LogProbabilities
from expunge.core.request import Example
from expunge.errors import UsageRefused
from expunge.internals.examples import Prompted
from expunge.primitives.memorisation import Floor, extraction_strength

if TYPE_CHECKING:
    from jaxtyping import Float
    from torch import Tensor


@dataclass(frozen=True)
class ExtractionStrength(ScoreAudit):
    """The share of an answer, from its end backwards, that is right without a mistake."""

    floor: Floor = "last row"
    """What an answer gets whose last counted token is wrong: "last row": 1 / n, as in open-unlearning; "none": 0."""

    needs = "a second labelled token"
    definition = (
        "Mean over texts of the share of labelled tokens, the last one aside, that lie behind the last wrong one "
        "(as in open-unlearning)."
    )

    def __post_init__(self) -> None:
        if self.floor not in ("none", "last row"):
            raise UsageRefused(f"The `floor` of ExtractionStrength must be 'none' or 'last row'. Got {self.floor!r}.")

    def applies(self, example: Example) -> bool:
        return isinstance(example, Prompted) and example.rows > 1

    def score(self, model: Model, batch: Batch) -> "Float[Tensor, ' examples']":
        said = model.ask(LogProbabilities(), batch)
        return torch.tensor([extraction_strength(rows[:-1], self.floor) for rows in said.split(said.right)])
