"""A batch of token sequences as trees, so that a shared beginning is read once and nothing is padded.

Chat templates open every example with the same words, and the options of one question share its whole prompt. Each
distinct beginning becomes one node; a node attends to its ancestors only, and its position is its depth. A causal
transformer that takes its positions and mask from its caller answers for each node exactly as if the node's sequence
had been read alone, gradients included.

Attention costs the square of a row, so a large batch grows several trees of about the same size side by side.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import ceil
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

if TYPE_CHECKING:
    from jaxtyping import Bool, Int


@dataclass(frozen=True)
class Woods:
    """Trees side by side, each with its parents first, filled up to the largest with nodes that see themselves only."""

    tokens: Int[Tensor, "trees nodes"]
    depth: Int[Tensor, "trees nodes"]
    sees: Bool[Tensor, "trees nodes nodes"]
    """`sees[t, i, j]`: in tree t, j is i or an ancestor of i."""
    paths: tuple[tuple[int, ...], ...]
    """The nodes of each sequence, in the order of its tokens; node i of tree t is t * nodes + i."""

    @staticmethod
    def of(sequences: Sequence[Sequence[int]], room: int) -> Woods:
        """The trees of `sequences`, of at most `room` nodes each, or of the longest sequence's."""
        groups = _even(sequences, room)
        trees = [_Tree([sequences[k] for k in group]) for group in groups]
        width = max(len(tree.tokens) for tree in trees)
        sees = np.zeros((len(trees), width, width), dtype=bool)
        sees[:, np.arange(width), np.arange(width)] = True
        paths: list[tuple[int, ...]] = [()] * len(sequences)
        for place, (group, tree) in enumerate(zip(groups, trees, strict=True)):
            tree.draw(sees[place])
            for index, path in zip(group, tree.paths, strict=True):
                paths[index] = tuple(place * width + node for node in path)
        return Woods(
            tokens=torch.tensor([tree.tokens + [0] * (width - len(tree.tokens)) for tree in trees]),
            depth=torch.tensor([tree.depth + [0] * (width - len(tree.depth)) for tree in trees]),
            sees=torch.from_numpy(sees),
            paths=tuple(paths),
        )

    def mask(self, dtype: torch.dtype, device: torch.device | str = "cpu") -> Tensor:
        """What is added to attention scores: 0 where a node may look, the lowest number elsewhere; [trees, 1, n, n]."""
        sees = self.sees.to(device)
        shut = torch.full(sees.shape, torch.finfo(dtype).min, dtype=dtype, device=device)
        return shut.masked_fill_(sees, 0.0)[:, None]


class _Tree:
    """The distinct beginnings of some sequences, parents first."""

    def __init__(self, sequences: Sequence[Sequence[int]]) -> None:
        nodes: dict[tuple[int, int], int] = {}
        self.parents: list[int] = []
        self.paths: list[list[int]] = []
        for sequence in sequences:
            at, path = -1, []
            for token in sequence:
                if (at, token) not in nodes:
                    nodes[at, token] = len(self.parents)
                    self.parents.append(at)
                at = nodes[at, token]
                path.append(at)
            self.paths.append(path)
        self.tokens = [token for _, token in nodes]
        self.depth = [0] * len(self.tokens)
        for node, parent in enumerate(self.parents):
            self.depth[node] = self.depth[parent] + 1 if parent >= 0 else 0

    def draw(self, sees: np.ndarray) -> None:
        """Enter who sees whom into a square that has its diagonal."""
        for node, parent in enumerate(self.parents):
            if parent >= 0:
                sees[node, :node] = sees[parent, :node]


def grown(sequences: Sequence[Sequence[int]], room: int) -> list[list[int]]:
    """Indices of `sequences` in groups whose trees have at most `room` nodes, neighbours in sorted order together."""
    groups: list[list[int]] = []
    before: Sequence[int] = ()
    used = 0
    for index in sorted(range(len(sequences)), key=lambda k: tuple(sequences[k])):
        sequence = sequences[index]
        new = len(sequence) - _shared(before, sequence)
        if not groups or used + new > room:
            groups.append([])
            used, new = 0, len(sequence)
        used += new
        before = sequence
        groups[-1].append(index)
    return groups


def _even(sequences: Sequence[Sequence[int]], room: int) -> list[list[int]]:
    """As few groups as `room` allows, cut where they come out about equally large, so that little is filled up."""
    least = grown(sequences, room)
    if len(least) == 1:
        return least
    low, high = ceil(room / 2), room
    while low < high:  # the smallest room that needs no more groups
        middle = (low + high) // 2
        if len(grown(sequences, middle)) > len(least):
            low = middle + 1
        else:
            high = middle
    return grown(sequences, high)


def _shared(one: Sequence[int], other: Sequence[int]) -> int:
    """How many tokens two sequences begin with in common."""
    count = 0
    for a, b in zip(one, other, strict=False):
        if a != b:
            break
        count += 1
    return count
