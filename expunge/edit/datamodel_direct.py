"""Take away what a datamodel says that the forget set gave the model (DM-Direct, Georgiev et al., 2025, 2410.23232).

    f(x)      = z(x) - multiplier * sum over forget of tau(z', x)                           class score by class score
    tau(z',x) = J(x) P^T (Phi^T Phi + damping)^-1 phi(z') (1 - p(z'))                             TRAK, arXiv 2303.14186

phi(z') is a sketch of the gradient of the log-odds of z', Phi those of forget and retain set, J(x) the slope of the
class scores of x by the weights. The sum over z' is one direction of weights, so here the weights take that step: to
first order the scores of every x are then f(x), and the result is a network like any other.

The published datamodels are regressions over thousands of trainings; TRAK needs the one model. It leaves out that a
model which is sure of an example has little curvature there, so its steps are too short: for small networks a
`multiplier` of 4 to 8 was best (docs/oracles.md). `DatamodelMatching(oracle=DatamodelDirect())` trains towards these
scores.
"""

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

from expunge.core.method import WeightMethod
from expunge.core.model import Batch, Model, Network
from expunge.core.question import LogProbabilities
from expunge.core.request import Request
from expunge.edit._fisher import copy_network
from expunge.errors import DataRefused, UsageRefused
from expunge.events import OnEvent
from expunge.internals.changes import describe_change
from expunge.internals.sketches import Sketcher, damp
from expunge.primitives.settings import check_least, check_seed

if TYPE_CHECKING:
    from jaxtyping import Float
    from torch import Tensor


@dataclass(frozen=True)
class DatamodelDirect(WeightMethod):
    """One step against what TRAK says that the forget set added to the class scores."""

    multiplier: float = 1.0
    """How many times the datamodel's shift is taken away; a deletion whose result is known tells the right one."""
    side: int = 16
    """Each matrix's gradient becomes side x side numbers: more are nearer to the gradients, and take more memory."""
    damping: float = 0.01
    """Added to the diagonal of the second moments, as a share of its mean; less takes more of rare directions away."""
    seed: int = 0
    """Fixes the projections."""

    def __post_init__(self) -> None:
        check_least(self, side=1)
        check_seed(self)
        for name, least in (("multiplier", self.multiplier >= 0), ("damping", self.damping > 0)):
            if not (least and vars(self)[name] < float("inf")):
                raise UsageRefused(
                    f"The `{name}` of DatamodelDirect must be positive and finite. Got {vars(self)[name]!r}."
                )

    def change(self, network: Network, request: Request, on_event: OnEvent) -> Model:
        if not request.retain:
            raise DataRefused("DatamodelDirect compares with the retain set, and the request has none. Give --retain.")
        sketcher, result = Sketcher(network, self.side, self.seed), copy_network(network)
        forget, retain = sketcher.sketch(request.forget), sketcher.sketch(request.retain)
        every = torch.cat([forget, retain]) * _weights([*request.forget, *request.retain]).sqrt()[:, None]
        pull = _doubt(network, request.forget) @ forget
        numbers = torch.linalg.solve(damp(every.T @ every, self.damping), pull)
        parameters = dict(result.module.named_parameters())
        with torch.no_grad():
            for name, step in sketcher.direction(self.multiplier * numbers):
                parameters[name].sub_(step.to(parameters[name]))
        on_event(describe_change(network, result))
        return result


def _doubt(network: Network, examples: Batch) -> "Float[Tensor, ' examples']":
    """1 - p of each example's right answer, times its weight."""
    said = network.ask(LogProbabilities(), examples)
    return _weights(examples) * (1 - said.mean(said.log_probs.double().exp()).cpu())


def _weights(examples: Batch) -> "Float[Tensor, ' examples']":
    return torch.tensor([example.weight for example in examples], dtype=torch.float64)
