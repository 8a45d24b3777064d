"""The gradient of a network's MLP matrices, with its largest components made small: what `RepSelect` goes along."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from expunge.core.model import Batch, Network
from expunge.errors import RunFailed
from expunge.internals.blocks import every_block, mixers, within
from expunge.internals.gradients import Gradient, Slopes, loss
from expunge.internals.mixtures import routers

if TYPE_CHECKING:
    from jaxtyping import Float

SHARE = 4
"""Of a matrix's components at most one in so many is collapsed: in a small one 512 would be all of them."""


def collapsed_gradient(network: Network, examples: Batch, rank: int) -> Gradient:
    """The collapsed gradient of the loss in each MLP matrix, of length 1 over all of them."""
    slopes = Slopes(network, [*_matrices(network.module)])
    slopes.add(examples, loss)
    found = {name: collapse(slope, rank) for name, slope in slopes.take()}
    length = math.sqrt(sum(float(each.square().sum()) for each in found.values()))
    if not 0 < length < math.inf:
        raise RunFailed("The gradient of the forget set's loss is 0 in every matrix, or no number. Check the model.")
    return {name: each.div_(length) for name, each in found.items()}


def collapse(slope: Float[Tensor, " rows *rest"], rank: int) -> Float[Tensor, " rows *rest"]:
    """A gradient whose first singular values s_1, ..., s_k become s_k^2 / s_i; the others are left as they are."""
    matrix = slope.flatten(1) if slope.dim() > 3 else slope  # the kernels of a convolution
    u, s, v = torch.linalg.svd(matrix, full_matrices=False)
    there = (s > s[..., :1] * torch.finfo(s.dtype).eps * max(matrix.shape[-2:])).sum(-1, keepdim=True)
    k = (there // SHARE).clamp(max=rank)  # of each matrix: experts that read nothing have no component
    last = s.gather(-1, (k - 1).clamp(min=0))
    less = torch.where(torch.arange(s.shape[-1], device=s.device) < k, s - last.square() / s, 0.0)
    changed: Tensor = matrix - (u * less[..., None, :]) @ v
    return changed.view_as(slope)


def _matrices(module: nn.Module) -> Iterator[str]:
    """Those of each block's MLP, a mixture's experts among them; of a network without blocks, all."""
    for name, block in (every_block(module) or {"": module}).items():
        apart = [*mixers(block), *routers(block)]
        for key, parameter in block.named_parameters(prefix=name):
            if parameter.dim() > 1 and not within(key.removeprefix(f"{name}."), apart):
                yield key
