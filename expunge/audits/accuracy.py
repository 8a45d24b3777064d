"""How often the right class comes first: top-1 accuracy of an image, or teacher-forced accuracy of answer tokens.

On texts this is exact memorisation as the field defines it, except that the end token counts too. Of images whose class
is not among the retained ones the ideal is 0: a model that was not trained on a class never says it.
"""

from dataclasses import dataclass
from typing import TYPE_CHECKING

from expunge.audits._kinds import ScoreAudit
from expunge.core.model import Batch, Model
from expunge.core.question import LogProbabilities
from expunge.core.request import Request
from expunge.internals.examples import are_absent
from expunge.primitives.standard import Standard, Tolerance

if TYPE_CHECKING:
    from jaxtyping import Float
    from torch import Tensor


@dataclass(frozen=True)
class Accuracy(ScoreAudit):
    """Share of rows whose right class has the highest score."""

    standard = Standard(gone=0.05, stay=Tolerance(0.02), retain=Tolerance(share=0.01))
    families = ("vision", "any")
    definition = "Mean over examples of the share of labelled rows whose right class has the highest score."

    def chance(self, model: Model, batch: Batch, request: Request) -> float | None:
        """0 for images of which neither the retain nor the holdout set has the class."""
        return 0.0 if are_absent(batch, (*request.retain, *request.holdout)) else None

    def score(self, model: Model, batch: Batch) -> "Float[Tensor, ' examples']":
        said = model.ask(LogProbabilities(), batch)
        return said.mean(said.right.float())
