"""Shared code of the three dampening edits, which shrink parameters that matter more to the forget set than to all
data."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np
import torch

from expunge.core.model import Network
from expunge.core.question import LogProbabilities
from expunge.core.request import Example, Request
from expunge.edit._fisher import copy_network
from expunge.errors import DataRefused
from expunge.events import OnEvent
from expunge.internals.changes import describe_change
from expunge.internals.gradients import Gradient

if TYPE_CHECKING:
    from numpy.typing import NDArray


def everything(request: Request, who: str) -> Sequence[Example]:
    """All training data of the request: retain and forget set."""
    if not request.retain:
        raise DataRefused(f"{who} compares the forget set with all training data. Give the rest with --retain.")
    return (*request.retain, *request.forget)


def mean_loss(network: Network, examples: Sequence[Example]) -> float:
    """Mean cross-entropy of a row, in nats."""
    said = network.ask(LogProbabilities(), examples)
    return -float(said.over_rows(said.log_probs))


def dampen(
    network: Network, forget: Gradient, whole: Gradient, alpha: float, strength: float, on_event: OnEvent
) -> Network:
    """A network in which each parameter whose importance to the forget set is above `alpha` times that to all data is
    multiplied by `min(strength * whole / forget, 1)`."""
    result = copy_network(network)
    selected = 0
    with torch.no_grad():
        for name, parameter in result.module.named_parameters():
            if name in forget:
                # Both importances of an unused parameter are 0: 0 > alpha * 0 is false, so it is not changed.
                chosen = forget[name] > alpha * whole[name]
                factor = (strength * whole[name] / forget[name]).clamp(max=1)
                parameter.mul_(torch.where(chosen, factor, torch.ones_like(factor)).to(parameter.dtype))
                selected += int(chosen.count_nonzero())
    on_event(replace(describe_change(network, result), selected=selected, alpha=alpha))
    return result


def adaptive_alpha(forget: Gradient, whole: Gradient, request: Request) -> float:
    """ASSD's rule: the P-th percentile of all finite ratios of importance, P = 100 - ln(1 + 100 |forget| / |all|)."""
    share = len(request.forget) / (len(request.forget) + len(request.retain))
    place = (100 - math.log1p(100 * share)) / 100
    ratios, count = np.empty(sum(part.numel() for part in forget.values()), dtype=np.float32), 0
    for name, part in forget.items():
        ratio = (part / whole[name]).flatten()
        finite = ratio[torch.isfinite(ratio)].cpu().numpy()
        ratios[count : count + len(finite)] = finite
        count += len(finite)
    return quantile(ratios[:count], place)


def quantile(values: NDArray[np.float32], place: float) -> float:
    """The value below which a share `place` lies, by linear interpolation. Reorders `values` in place, to need no copy
    of them."""
    if not len(values):
        raise DataRefused("No parameter has an importance to either set, so there is nothing to dampen.")
    at = place * (len(values) - 1)
    low = math.floor(at)
    high = min(low + 1, len(values) - 1)
    values.partition((low, high))
    return float(values[low]) + (at - low) * (float(values[high]) - float(values[low]))
