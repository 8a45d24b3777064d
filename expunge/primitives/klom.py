"""KLoM: how far a method's models are from retrained ones, example by example (Georgiev et al., 2025, 2410.23232).

    k(x) = log p_y(x) - log (1 - p_y(x))                          the margin of the right class
    KLoM(x) = KL( k(x) over N unlearned models || k(x) over M models retrained without the forget set )

The margins of both are clipped to +-100 and counted in 20 bins of equal width over their joint range, both ends
included; a bin that no retrained model is in counts as 1e-5 where an unlearned one is. So KLoM(x) is at most
ln 1e5 = 11.51, and it is not 0 for two halves of one and the same ensemble: that floor falls with the number of models
(at 50 its 95th percentile is about 1.7), and a value can be read beside it alone. Published code differs in the
direction, the number of edges, and whether the largest margin is counted: say which one a number follows.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

if TYPE_CHECKING:
    from jaxtyping import Float

CLIP, BINS, EMPTY = 100.0, 20, 1e-5


def margins(right_log_probs: Float[Tensor, "*shape"]) -> Float[Tensor, "*shape"]:
    """log-odds of the right class from its log-probability, in float64; infinite where it is certain."""
    wide = right_log_probs.double()
    return wide - torch.log(-torch.expm1(wide))


def klom(
    unlearned: Float[Tensor, "models examples"], retrained: Float[Tensor, "others examples"]
) -> Float[Tensor, " examples"]:
    """KLoM of each example, in nats, from the margins of two ensembles, which may differ in size."""
    one, other = (each.double().clamp(-CLIP, CLIP) for each in (unlearned, retrained))
    low = torch.minimum(one.amin(0), other.amin(0))
    width = torch.maximum(one.amax(0), other.amax(0)) - low
    p, q = (_shares(each, low, width) for each in (one, other))
    return torch.where(p > 0, p * torch.log(p / torch.where(q > 0, q, EMPTY)), 0.0).sum(0)


def _shares(margin: Tensor, low: Tensor, width: Tensor) -> Float[Tensor, "bins examples"]:
    """The share of models in each bin; where all margins are one number, that is one bin."""
    places = ((margin - low) / torch.where(width > 0, width, 1.0) * BINS).floor().clamp(max=BINS - 1).long()
    counts = margin.new_zeros(BINS, margin.shape[1])
    return counts.scatter_add_(0, places, torch.ones_like(margin)) / len(margin)
