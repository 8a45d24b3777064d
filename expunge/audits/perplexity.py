"""How surprised the model is by a running text: exp of its mean loss."""

import math
from dataclasses import dataclass

from expunge.core.audit import Audit, Finding
from expunge.core.model import Model
from expunge.core.request import Request
from expunge.core.statistics import mean_interval


@dataclass(frozen=True)
class Perplexity(Audit):
    """Geometric mean, over texts, of exp(mean negative log-probability of a token)."""

    definition = "Exp of the mean over texts of the mean negative log-probability of a token."

    def __call__(self, model: Model, request: Request) -> tuple[Finding, ...]:
        found = []
        for name, examples in request.sets().items():
            said = model.answers(examples)
            losses = (-said.mean(said.log_probs)).double().tolist()
            value = math.fsum(losses) / len(losses)
            low, high = mean_interval(losses)
            found.append(
                Finding(
                    audit=self.name,
                    set=name,
                    value=math.exp(value),
                    low=math.exp(low),
                    high=math.exp(high),
                    n=len(losses),
                    definition=self.definition,
                    scores=tuple(map(math.exp, losses)),
                )
            )
        return tuple(found)
