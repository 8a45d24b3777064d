"""How surprised the model is by a running text: exp of its mean loss."""

from dataclasses import dataclass

import numpy as np

from expunge.audits._kinds import SetAudit, mean_of
from expunge.core.audit import Finding
from expunge.core.model import Model
from expunge.core.question import LogProbabilities
from expunge.core.request import Request


@dataclass(frozen=True)
class Perplexity(SetAudit):
    """Geometric mean, over texts, of exp(mean negative log-probability of a token)."""

    better = "lower"
    definition = "Exp of the mean over texts of the mean negative log-probability of a token."

    def __call__(self, model: Model, request: Request) -> tuple[Finding, ...]:
        found = []
        self.check(model)
        for name, examples in self.applicable(request).items():
            said = model.ask(LogProbabilities(), examples)
            losses = (-said.mean(said.log_probs)).double().tolist()
            value, (low, high) = mean_of(losses, examples)
            found.append(self.finding(name, _exp(value), (_exp(low), _exp(high)), tuple(map(_exp, losses))))
        return tuple(found)


def _exp(nats: float) -> float:
    """Infinite beyond 709 nats, where `math.exp` fails: a model that ascended for too long gets there."""
    with np.errstate(over="ignore"):
        return float(np.exp(nats))
