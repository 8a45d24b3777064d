"""Quantisation attack (Zhang et al., 2025, arXiv 2410.16454): rounding the weights may recover forgotten answers.

    s = max |w| / (2 ** (bits - 1) - 1) for each row,   w <- round(w / s) * s

Where forgetting changed a weight by less than half a step, its code is that of the original model, and the rounded
models agree there. `equal_codes` is the share of such weights, without any audit: near 1, the rounded model is the
rounded original, with all its knowledge. All matrices are rounded, embeddings and output matrix among them; vectors
(norms,
biases) are not, as in common 4-bit formats. Run it on the retrained model too, and check the retain set: a
broken model recovers nothing.
"""

import copy
import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

from expunge.core.method import WeightMethod
from expunge.core.model import Model, Network
from expunge.core.request import Request
from expunge.errors import ModelRefused, UsageRefused
from expunge.events import OnEvent
from expunge.internals.changes import describe_change

if TYPE_CHECKING:
    from jaxtyping import Float
    from torch import Tensor


@dataclass(frozen=True)
class Quantize(WeightMethod):
    """Symmetric rounding of each row of each matrix, and back to floating point."""

    bits: int = 4
    """Length of a code: 4 is the attack, 8 the control that changes little."""

    def __post_init__(self) -> None:
        if not 2 <= self.bits <= 16:
            raise UsageRefused(f"The `bits` of Quantize must lie between 2 and 16. Got {self.bits!r}.")

    def change(self, network: Network, request: Request, on_event: OnEvent) -> Model:
        result = network.fork(copy.deepcopy(network.module))
        with torch.no_grad():
            for parameter in filter(_is_matrix, result.module.parameters()):
                codes, step = self._codes(parameter)
                parameter.copy_((codes * step).view(parameter.shape))
        on_event(describe_change(network, result))
        return result

    def equal_codes(self, network: Network, original: Network) -> float:
        """Share of the matrices' weights that have the same code in both networks."""
        equal, count = 0, 0
        others = dict(original.module.named_parameters())
        with torch.no_grad():
            for name, parameter in network.module.named_parameters():
                if _is_matrix(parameter):
                    if name not in others or others[name].shape != parameter.shape:
                        raise ModelRefused(
                            f"equal_codes: {name} is not in both networks. Give a model and one made from it."
                        )
                    equal += int((self._codes(parameter)[0] == self._codes(others[name])[0]).sum())
                    count += parameter.numel()
        return equal / count if count else math.nan

    def _codes(self, weight: "Tensor") -> "tuple[Float[Tensor, 'rows columns'], Float[Tensor, 'rows 1']]":
        """Codes as whole numbers from -(2 ** (bits - 1) - 1) up, and each row's step."""
        rows = weight.detach().flatten(1)
        rows = rows if rows.dtype == torch.float64 else rows.float()
        step = rows.abs().amax(1, keepdim=True) / (2 ** (self.bits - 1) - 1)
        # A row of zeros has a step of 0: any other step gives it the codes that it should have.
        step = torch.where(step == 0, torch.ones_like(step), step)
        return (rows / step).round(), step


def _is_matrix(parameter: "Tensor") -> bool:
    return parameter.dim() >= 2 and parameter.is_floating_point()
