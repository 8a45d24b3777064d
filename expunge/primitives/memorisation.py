"""How well a text is known, from the rows of that text alone: the field's formulas, each in one place.

Rows are labelled tokens in their order. Whether the end token is among them is for the caller to say.
"""

from __future__ import annotations

import zlib
from collections.abc import Iterable
from typing import TYPE_CHECKING, Literal

import torch

if TYPE_CHECKING:
    from jaxtyping import Bool, Float
    from torch import Tensor

SMALLEST = 1e-6
"""Least variance that Min-K++ divides by."""
Floor = Literal["none", "last row"]
"""What is extracted of a text whose last row is wrong: nothing, or that row all the same, as open-unlearning's loop,
which ends there, has it."""


def lowest_mean(values: Float[Tensor, " rows"], fraction: float) -> Float[Tensor, ""]:
    """Mean of the lowest share of the values, of one at least (Min-K% Prob, Shi et al., 2023, arXiv 2310.16789)."""
    return values.sort().values[: max(1, int(len(values) * fraction))].mean()


def standardise(
    log_probs: Float[Tensor, " rows"], mean: Float[Tensor, " rows"], variance: Float[Tensor, " rows"]
) -> Float[Tensor, " rows"]:
    """Each row's log-probability, centred and scaled by its own distribution (Min-K%++, Zhang et al., 2024, arXiv
    2404.02936)."""
    return (log_probs - mean) / variance.clamp(min=SMALLEST).sqrt()


def extraction_strength(right: Bool[Tensor, " rows"], floor: Floor = "none") -> float:
    """1 - k / n, where k is the least number of rows that must be given so that all others are right (Carlini et al.,
    2021, arXiv 2012.07805); 0 of no rows."""
    if not len(right):
        return 0.0
    known = int(right.flip(0).int().cumprod(0).sum())
    return max(known, 1 if floor == "last row" else 0) / len(right)


def exact_memorisation(right: Bool[Tensor, " rows"]) -> float:
    """Share of right rows (Tirumala et al., 2022, arXiv 2205.10770); 0 of no rows."""
    return float(right.double().mean()) if len(right) else 0.0


def loss_by_packed_size(loss: float, text: str) -> float:
    """A text's mean loss over the number of bytes that zlib packs it to (Carlini et al., 2021, arXiv 2012.07805)."""
    return loss / len(zlib.compress(text.encode("utf-8", "replace")))


def norm_of_gradient(slopes: Iterable[Tensor]) -> float:
    """Mean over weight tensors of their gradients' Euclidean norms: open-unlearning's score of membership."""
    return float(torch.stack([slope.double().norm() for slope in slopes]).mean())
