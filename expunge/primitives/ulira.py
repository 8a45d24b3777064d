"""U-LiRA: does one example tell an unlearned model from one that never saw it (Hayes et al., 2024, arXiv 2403.01218)?

    k(x) = log p_y(x) - log (1 - p_y(x))                                    the margin of the right class
    s(x) = log N(k(x); mu_u, sigma_u) - log N(k(x); mu_r, sigma_r)          > 0: "unlearned"

The means and deviations are those of x's margins over the unlearned and over the retrained models, each without the
model that is judged. Accuracy is the share of models that are told right, both kinds counting the same and a tie half:
0.5 where nothing tells them apart, and 1 where x gives every model away. An attack that has one threshold for all
examples, such as membership by loss, sees less: what sticks out of one example's own distribution may be quite usual
among all.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from torch import Tensor

from expunge.errors import UsageRefused
from expunge.primitives.klom import CLIP

if TYPE_CHECKING:
    from jaxtyping import Float

LEAST = 1e-6
"""Least variance, in squared nats: margins that are all one number are told apart by the mean alone."""


def ulira(
    unlearned: Float[Tensor, "models examples"], retrained: Float[Tensor, "others examples"], pooled: bool = False
) -> Float[Tensor, " examples"]:
    """Accuracy of the attack on each example, in 0 to 1, from the margins (`primitives.klom.margins`) of two ensembles.

    `pooled` takes each kind's variance from all examples together, as with fewer than some sixteen models of a kind,
    whose own variances say little. Margins are clipped to +-100.

    Raises `UsageRefused` for fewer than three models of a kind.
    """
    if min(len(unlearned), len(retrained)) < 3:
        raise UsageRefused(
            f"U-LiRA was given {len(unlearned)} unlearned and {len(retrained)} retrained models. Give three of each or "
            f"more: one is judged by the others."
        )
    one, other = (each.double().clamp(-CLIP, CLIP) for each in (unlearned, retrained))
    return (_share_told_right(one, other, pooled) + _share_told_right(other, one, pooled)) / 2


def _share_told_right(own: Tensor, others: Tensor, pooled: bool) -> Float[Tensor, " examples"]:
    """The share of the own models that are likelier among their own kind, themselves left out."""
    n = len(own)
    mean = (own.sum(0) - own) / (n - 1)
    variance = (own.square().sum(0) - own.square() - (n - 1) * mean.square()) / (n - 2)
    score = _log_density(own, mean, variance, pooled) - _log_density(own, others.mean(0), others.var(0), pooled)
    return ((score > 0).double() + (score == 0) / 2).mean(0)


def _log_density(value: Tensor, mean: Tensor, variance: Tensor, pooled: bool) -> Tensor:
    """But for a constant."""
    floored = (variance.mean(-1, keepdim=True) if pooled else variance).clamp(min=LEAST)
    return -((value - mean).square() / floored + floored.log()) / 2
