"""Are wrong answers as likely as the right one? (Maini et al., 2024, TOFU, arXiv 2401.06121)

    R = exp(-mean_j l_j) / (exp(-l) + 1e-10),    l = mean negative log-probability of a row of the set's own answer,
                                                 l_j that of its j-th option; end tokens count
    sets to be forgotten, and the holdout set:   mean of min(R, 1 / (R + 1e-10)); a model that knows scores near 0
    all other sets:                              mean of max(0, 1 - R); a model that knows scores near 1

The scores of a finding are the R themselves: with a reference model, the report tests whether both models' R look
drawn alike (`ForgetQuality`, `TruthRatioShift`). For sets that were trained on, TOFU takes a paraphrase of the answer
as the right one: give a probe (`--probe forget_paraphrased=...`) whose `answer` is the paraphrase and whose `options`
are the wrong answers. Read R beside the loss: once the right answer falls below 1e-10 for each row, as in a model that
has collapsed, the 1e-10 takes over, and R falls to 0 as if the answer were known.
"""

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

import torch

from expunge.audits._kinds import SetAudit, mean_of
from expunge.core.audit import Finding
from expunge.core.model import Batch, Model
from expunge.core.question import LogProbabilities
from expunge.core.request import Example, Request
from expunge.primitives.meanings import is_unseen, should_be_gone

if TYPE_CHECKING:
    from jaxtyping import Float
    from torch import Tensor

TINY = 1e-10
"""What the published evaluations add to a divisor."""


@dataclass(frozen=True)
class TruthRatio(SetAudit):
    """Likelihood of the wrong answers over that of the right one, length-normalised."""

    mean: Literal["geometric", "arithmetic"] = "geometric"
    """How the wrong answers' probabilities are averaged: geometric as in TOFU's code and the tables that followed it,
    arithmetic as in TOFU's paper. It moves the p-value of forget quality by an order of magnitude."""

    needs = "options: wrong answers"

    @property
    def definition(self) -> str:  # type: ignore[override]
        """Which of the two definitions the numbers follow."""
        return (
            f"R = {self.mean} mean probability of the wrong options over that of the right answer, each to the power "
            f"1 / rows (TOFU). Of what should be gone and of the holdout set the mean of min(R, 1/R), of other sets "
            f"that of max(0, 1 - R)."
        )

    def __call__(self, model: Model, request: Request) -> tuple[Finding, ...]:
        self.check(model)
        found = []
        for name, asked in self.applicable(request).items():
            ratios = self.ratios(model, asked)
            values = self.values(ratios, _is_inverse(name)).tolist()
            found.append(self.finding(name, *mean_of(values, asked), ratios.tolist()))
        return tuple(found)

    def applies(self, example: Example) -> bool:
        return bool(example.alternatives)

    def direction(self, where: str) -> Literal["higher", "lower"]:
        return "lower" if _is_inverse(where) else "higher"

    def ratios(self, model: Model, batch: Batch) -> "Float[Tensor, ' examples']":
        """R of each example."""
        said = model.ask(LogProbabilities(), [text for example in batch for text in (example, *example.alternatives)])
        sizes = [1 + len(example.alternatives) for example in batch]
        losses = -said.mean(said.log_probs.double())
        return torch.stack([self.ratio(each[0], each[1:]) for each in losses.split(sizes)])

    def ratio(self, right: "Float[Tensor, '']", wrong: "Float[Tensor, ' options']") -> "Float[Tensor, '']":
        """R from mean negative log-probabilities."""
        likely = (-wrong.mean()).exp() if self.mean == "geometric" else (-wrong).exp().mean()
        return likely / ((-right).exp() + TINY)

    @staticmethod
    def values(ratios: "Float[Tensor, ' examples']", gone: bool) -> "Float[Tensor, ' examples']":
        """What is averaged over a set."""
        return torch.minimum(ratios, 1 / (ratios + TINY)) if gone else (1 - ratios).clamp(min=0)


def _is_inverse(where: str) -> bool:
    """Whether the mean over a set is of min(R, 1/R), which a model that knows the set takes to 0."""
    return should_be_gone(where) or is_unseen(where)
