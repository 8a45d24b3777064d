"""The nearest matrix of a lower rank (Eckart and Young, 1936): the most that a LoRA of that rank can hold of an update.

W = U S V^T,   B = U_r S_r^(1/2),   A = S_r^(1/2) V_r^T,   |W - B A|^2 = the sum of the squares of the other S
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch.nn.functional import pad

if TYPE_CHECKING:
    from jaxtyping import Float
    from torch import Tensor


@dataclass(frozen=True)
class Factors:
    """B A in place of an update, and what that lacks."""

    a: Float[Tensor, "r in"]
    b: Float[Tensor, "out r"]
    norm: float
    """Frobenius norm of the update."""
    lost: float
    """Frobenius norm of the update less B A."""

    @property
    def error(self) -> float:
        """What is lost, as a share of the update's norm; 0 of no update."""
        return self.lost / self.norm if self.norm else 0.0

    def widen(self, rank: int) -> Factors:
        """The same with `rank` rows of A and columns of B, of which those added are 0."""
        more = rank - self.a.shape[0]
        return Factors(pad(self.a, (0, 0, 0, more)), pad(self.b, (0, more)), self.norm, self.lost)


def nearest(update: Float[Tensor, "out in"], rank: int) -> Factors:
    """The factors of the nearest matrix of at most `rank`, balanced: A and B share each singular value equally."""
    u, s, v = torch.linalg.svd(update, full_matrices=False)
    root = s[:rank].sqrt()
    a, b = (root[:, None] * v[:rank]).contiguous(), (u[:, :rank] * root).contiguous()
    return Factors(a, b, frobenius(update), frobenius(update - b @ a))


def frobenius(tensor: Tensor) -> float:
    """Root of the sum of squares, summed in double precision."""
    return float(tensor.double().square().sum().sqrt())
