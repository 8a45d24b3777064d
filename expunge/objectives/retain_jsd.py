"""Retain by the original model, bounded: the retain half of JensUn (Singh et al., 2025, arXiv 2509.02820).

    loss = mean over labelled rows of  JSD(p_before, p_now) = KL(p_before || m) / 2 + KL(p_now || m) / 2,
    m = (p_before + p_now) / 2;   symmetric, from 0 to log 2

Near the start it is a quarter of the KL divergence (`RetainKL`), so the same effect takes about four times the weight.

Needs the retain set and the reference. Meant as retention.
"""

import math
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from expunge.core.objective import Objective, Scalar
from expunge.core.view import View

LOG_2 = math.log(2)


@dataclass(frozen=True)
class RetainJSD(Objective):
    """Keep the whole distribution of the retain set's rows, by a loss that cannot exceed log 2."""

    needs: ClassVar = ("retain", "reference")
    intention: ClassVar = "retention"

    def __call__(self, now: View, before: View) -> Scalar:
        return now.retain.over_rows(now.retain.each_row(_distance, before.retain))


def _distance(_labels: Tensor, now: Tensor, before: Tensor) -> Tensor:
    one, other = now.log_softmax(-1), before.log_softmax(-1)
    # Never log of 0: the mean is computed from the logarithms.
    mean = torch.logaddexp(one, other) - LOG_2
    return ((one.exp() * (one - mean)).sum(-1) + (other.exp() * (other - mean)).sum(-1)) / 2
