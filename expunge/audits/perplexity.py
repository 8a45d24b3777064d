"""How surprised the model is by a running text: exp of its mean loss."""

from dataclasses import dataclass, replace

import numpy as np

from expunge.audits._kinds import SetAudit, mean_of, weights_of
from expunge.core.audit import Finding
from expunge.core.model import Model
from expunge.core.question import LogProbabilities
from expunge.core.request import Request
from expunge.primitives.estimates import geometric_estimate
from expunge.primitives.standard import Standard, Tolerance


@dataclass(frozen=True)
class Perplexity(SetAudit):
    """Geometric mean, over texts, of exp(mean negative log-probability of a token)."""

    better = "lower"
    standard = Standard(text=Tolerance(share=0.03), estimate=geometric_estimate)
    definition = "Exp of the mean over texts of the mean negative log-probability of a token."

    def __call__(self, model: Model, request: Request) -> tuple[Finding, ...]:
        found = []
        self.check(model)
        for name, examples in self.applicable(request).items():
            said = model.ask(LogProbabilities(), examples)
            losses = (-said.mean(said.log_probs)).double().tolist()
            value, (low, high) = mean_of(losses, examples)
            made = self.finding(name, _exp(value), (_exp(low), _exp(high)), tuple(map(_exp, losses)))
            found.append(replace(made, weights=tuple(weights_of(examples) or ())))
        return tuple(found)


def _exp(nats: float) -> float:
    """Infinite beyond 709 nats, where `math.exp` fails: a model that ascended for too long gets there."""
    with np.errstate(over="ignore"):
        return float(np.exp(nats))
