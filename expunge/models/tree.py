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
    def of(sequences: Sequence[Sequence[int]], room: int, thrift: int = 0) -> Woods:
        """The trees of `sequences`, of at most `room` nodes each, or of the longest sequence's.

        `thrift` is how many entries of a node's row of the mask cost as much as the node's other work: with it, trees
        are as small as makes the whole cheapest; without, as few as `room` allows.
        """
        groups = _cheapest(_Order.of(sequences), room, thrift)
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


@dataclass(frozen=True)
class _Order:
    """Sequences sorted, with what each adds to the tree of those before it."""

    indices: list[int]
    lengths: list[int]
    added: list[int]
    """Tokens after those that it begins with in common with the one before."""

    @staticmethod
    def of(sequences: Sequence[Sequence[int]]) -> _Order:
        indices = sorted(range(len(sequences)), key=lambda k: tuple(sequences[k]))
        ordered = [sequences[k] for k in indices]
        shared = [_shared(one, other) for one, other in zip([(), *ordered], ordered, strict=False)]
        lengths = [len(sequence) for sequence in ordered]
        return _Order(indices, lengths, [n - s for n, s in zip(lengths, shared, strict=True)])

    def cut(self, room: int) -> tuple[list[list[int]], int]:
        """Groups whose trees have at most `room` nodes, and the nodes of the largest."""
        groups: list[list[int]] = []
        used = largest = 0
        for index, length, added in zip(self.indices, self.lengths, self.added, strict=True):
            if not groups or used + added > room:
                groups.append([])
                used, added = 0, length
            used += added
            largest = max(largest, used)
            groups[-1].append(index)
        return groups, largest


def grown(sequences: Sequence[Sequence[int]], room: int) -> list[list[int]]:
    """Indices of `sequences` in groups whose trees have at most `room` nodes, neighbours in sorted order together."""
    return _Order.of(sequences).cut(room)[0]


def _cheapest(order: _Order, room: int, thrift: int) -> list[list[int]]:
    """The groups whose trees, filled up to the largest, cost least."""
    best, least = _even(order, room)
    if thrift:
        low = max(order.lengths)
        for smaller in sorted({max(low, room * k // 8) for k in range(1, 8)}):
            groups, width = _even(order, smaller)
            if len(groups) * width * (thrift + width) < len(best) * least * (thrift + least):
                best, least = groups, width
    return best


def _even(order: _Order, room: int) -> tuple[list[list[int]], int]:
    """As few groups as `room` allows, cut where they come out about equally large, so that little is filled up."""
    count = len(order.cut(room)[0])
    low, high = ceil(room / 2), room
    while low < high:  # the smallest room that needs no more groups
        middle = (low + high) // 2
        if len(order.cut(middle)[0]) > count:
            low = middle + 1
        else:
            high = middle
    return order.cut(high)


def _shared(one: Sequence[int], other: Sequence[int]) -> int:
    """How many tokens two sequences begin with in common."""
    count = 0
    for a, b in zip(one, other, strict=False):
        if a != b:
            break
        count += 1
    return count
