"""Norms that show whether a run is stable: of gradients by part of the network, and of the change of the weights."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping

import torch
from torch import Tensor, nn

from expunge.runtime.processes import all_reduce, local_part


class Norms:
    """Computes norms; keeps a vector for each layer, from which the next power iteration starts."""

    def __init__(self) -> None:
        self.directions: dict[str, Tensor] = {}

    @staticmethod
    def gradients(moving: Mapping[str, nn.Parameter], kind: Callable[[str], str]) -> dict[str, float]:
        """Euclidean norms of the raw gradient, over the MLP's, the attention's and all other parameters."""
        squares = dict.fromkeys(("mlp", "attention", "other"), 0.0)
        for name, parameter in moving.items():
            if parameter.grad is not None:
                squares[kind(name)] += float(local_part(parameter.grad.detach()).float().square().sum())
        added = all_reduce(torch.tensor([*squares.values()], dtype=torch.float64)).tolist()
        return {name: math.sqrt(value) for name, value in zip(squares, added, strict=True)}

    @torch.no_grad()
    def deltas(self, changes: Iterator[tuple[str, Tensor]]) -> dict[str, float]:
        """Frobenius norm over all adapted layers, and the largest spectral norm of one of them.

        The spectral norm is estimated by power iteration, one round a step, from the step before: a lower bound that is
        tight once the update's direction is stable.
        """
        square, largest = 0.0, 0.0
        for name, delta in changes:
            square += float(delta.square().sum())
            largest = max(largest, self._spectral(name, delta.float()))
        return {"frobenius": math.sqrt(square), "spectral": largest}

    def _spectral(self, name: str, delta: Tensor) -> float:
        known = self.directions.get(name)
        right = (_start(delta.shape[1]) if known is None else known).to(delta.device)  # a checkpoint's are on the CPU
        for _ in range(4 if known is None else 1):
            right = delta.T @ (delta @ right)
            length = right.norm()
            if length == 0:
                return 0.0
            right = right / length
        self.directions[name] = right
        return float((delta @ right).norm())


def _start(width: int) -> Tensor:
    """A random start vector. All ones would be orthogonal to every update after a LayerNorm, whose outputs sum to 0."""
    return torch.randn(width, generator=torch.Generator().manual_seed(0))
