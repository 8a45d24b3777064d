"""How often the right class comes first: top-1 accuracy of an image, or teacher-forced accuracy of answer tokens.

On texts this is exact memorisation as the field defines it, except that the end token counts too.
"""

from dataclasses import dataclass
from typing import TYPE_CHECKING

from expunge.audits._kinds import ScoreAudit
from expunge.core.model import Batch, Model
from expunge.core.question import LogProbabilities
from expunge.primitives.standard import Standard, Tolerance

if TYPE_CHECKING:
    from jaxtyping import Float
    from torch import Tensor


@dataclass(frozen=True)
class Accuracy(ScoreAudit):
    """Share of rows whose right class has the highest score."""

    standard = Standard(gone=0.05, stay=Tolerance(0.02), retain=Tolerance(share=0.01))
    families = ("vision",)
    definition = "Mean over examples of the share of labelled rows whose right class has the highest score."

    def score(self, model: Model, batch: Batch) -> "Float[Tensor, ' examples']":
        said = model.ask(LogProbabilities(), batch)
        return said.mean(said.right.float())
