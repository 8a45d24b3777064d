"""A batch of token sequences as one tree, so that a shared beginning is read once.

Chat templates open every example with the same words, and the options of one question share its whole prompt. Each
distinct beginning becomes one node; a node attends to its ancestors only, and its position is its depth. A causal
transformer that takes its positions and mask from its caller answers for each node exactly as if the node's sequence
had been read alone, gradients included.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

if TYPE_CHECKING:
    from jaxtyping import Bool, Int


@dataclass(frozen=True)
class Tree:
    """Nodes in an order in which parents come first."""

    tokens: Int[Tensor, " nodes"]
    depth: Int[Tensor, " nodes"]
    sees: Bool[Tensor, "nodes nodes"]
    """`sees[i, j]`: j is i or an ancestor of i."""
    paths: tuple[tuple[int, ...], ...]
    """The nodes of each sequence, in the order of its tokens."""

    @staticmethod
    def of(sequences: Sequence[Sequence[int]]) -> Tree:
        """The tree of `sequences`."""
        nodes: dict[tuple[int, int], int] = {}
        parents: list[int] = []
        paths: list[tuple[int, ...]] = []
        for sequence in sequences:
            at, path = -1, []
            for token in sequence:
                if (at, token) not in nodes:
                    nodes[at, token] = len(parents)
                    parents.append(at)
                at = nodes[at, token]
                path.append(at)
            paths.append(tuple(path))
        depth = np.zeros(len(parents), dtype=np.int64)
        sees = np.eye(len(parents), dtype=bool)
        for node, parent in enumerate(parents):
            if parent >= 0:
                depth[node] = depth[parent] + 1
                sees[node] |= sees[parent]
        return Tree(
            tokens=torch.tensor([token for _, token in nodes]),
            depth=torch.from_numpy(depth),
            sees=torch.from_numpy(sees),
            paths=tuple(paths),
        )

    def mask(self, dtype: torch.dtype) -> Tensor:
        """What is added to attention scores: 0 where a node may look, the lowest number elsewhere; [1, 1, n, n]."""
        shut = torch.full(self.sees.shape, torch.finfo(dtype).min, dtype=dtype)
        return shut.masked_fill_(self.sees, 0.0)[None, None]


def grown(sequences: Sequence[Sequence[int]], room: int) -> list[list[int]]:
    """Indices of `sequences` in groups whose trees have at most `room` nodes, neighbours in sorted order together."""
    groups: list[list[int]] = []
    seen: set[tuple[int, ...]] = set()
    for index in sorted(range(len(sequences)), key=lambda k: tuple(sequences[k])):
        beginnings = {tuple(sequences[index][: k + 1]) for k in range(len(sequences[index]))}
        if not groups or len(seen | beginnings) > room:
            groups.append([])
            seen = set()
        seen |= beginnings
        groups[-1].append(index)
    return groups
