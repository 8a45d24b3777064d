"""How surprised the model is by a running text: exp of its mean loss."""

from dataclasses import dataclass

import numpy as np

from expunge.core.audit import Audit, Finding
from expunge.core.model import Model
from expunge.core.question import LogProbabilities
from expunge.core.request import Request
from expunge.primitives.statistics import mean_interval


@dataclass(frozen=True)
class Perplexity(Audit):
    """Geometric mean, over texts, of exp(mean negative log-probability of a token)."""

    definition = "Exp of the mean over texts of the mean negative log-probability of a token."

    def __call__(self, model: Model, request: Request) -> tuple[Finding, ...]:
        found = []
        for name, examples in request.sets().items():
            said = model.ask(LogProbabilities(), examples)
            losses = (-said.mean(said.log_probs)).double().tolist()
            value = float(np.mean(losses))  # as the interval takes it: another sum would end in another last digit
            low, high = mean_interval(losses)
            found.append(
                Finding(
                    audit=self.name,
                    set=name,
                    value=_exp(value),
                    low=_exp(low),
                    high=_exp(high),
                    n=len(losses),
                    definition=self.definition,
                    scores=tuple(map(_exp, losses)),
                )
            )
        return tuple(found)


def _exp(nats: float) -> float:
    """Infinite beyond 709 nats, where `math.exp` fails: a model that ascended for too long gets there."""
    with np.errstate(over="ignore"):
        return float(np.exp(nats))
