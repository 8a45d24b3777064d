"""Gradients of single examples, in few numbers each (LoGra, Choe et al., 2024, arXiv 2405.13954).

    sketch(z) = of each matrix's part of the gradient, P g Q: `side` x `side` numbers, with P and Q random

The product of two sketches is, on average, that of the gradients. A direction in sketches is one in weights: P^T v Q.
"""

from __future__ import annotations

import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

from expunge.core.model import Batch, Network
from expunge.core.predictions import Predictions
from expunge.internals.blocks import every_block
from expunge.internals.gradients import Slopes
from expunge.internals.states import log_odds

if TYPE_CHECKING:
    from jaxtyping import Float
    from torch import Tensor


@dataclass(frozen=True)
class Sketcher:
    """Sketches of the log-odds' gradients at a network's present weights; each costs a pass forwards and backwards."""

    network: Network
    side: int
    seed: int

    def matrices(self) -> list[str]:
        """Names of the matrices inside blocks; of all matrices where there are no blocks."""
        inside = tuple(f"{name}." for name in every_block(self.network.module))
        names = [name for name, p in self.network.module.named_parameters() if p.dim() > 1]
        return [name for name in names if name.startswith(inside)] if inside else names

    def sketch(self, examples: Batch) -> Float[Tensor, "examples k"]:
        """One row for each example, in float64 on the CPU."""
        slopes, rows = Slopes(self.network.side_by_side(), self.matrices()), []
        for example in examples:
            slopes.add([example], _mean_log_odds)
            rows.append(torch.cat([self._project(name, slope).flatten() for name, slope in slopes.take()]))
        return torch.stack(rows).double().cpu()

    def direction(self, numbers: Float[Tensor, " k"]) -> Iterator[tuple[str, Tensor]]:
        """The weights' direction that a row of numbers stands for: a sketch times it is a gradient times this."""
        known = dict(self.network.module.named_parameters())
        for name, part in zip(self.matrices(), numbers.split(self.side**2), strict=True):
            weight = known[name]
            p, q = self._draw(name, weight.detach().flatten(1))
            yield name, (p.T @ part.view(self.side, self.side).to(p) @ q).view_as(weight)

    def _project(self, name: str, slope: Tensor) -> Float[Tensor, "side side"]:
        flat = slope.flatten(1)
        p, q = self._draw(name, flat)
        sketch: Tensor = p @ flat @ q.T
        return sketch

    def _draw(self, name: str, flat: Tensor) -> tuple[Tensor, Tensor]:
        draw = torch.Generator().manual_seed((self.seed ^ zlib.crc32(name.encode())) % 2**63)
        p, q = (torch.randn(self.side, size, generator=draw).to(flat) / self.side**0.5 for size in flat.shape)
        return p, q


def damp(moments: Float[Tensor, "k k"], damping: float) -> Float[Tensor, "k k"]:
    """Second moments with a share of their mean diagonal added, so that they can be inverted."""
    return moments + damping * moments.diagonal().mean() * torch.eye(len(moments), dtype=moments.dtype)


def _mean_log_odds(predictions: Predictions) -> Tensor:
    return predictions.over_rows(predictions.each_row(log_odds))
