"""A batch of token sequences as a tree of their prefixes: a shared prefix is read once, and nothing is padded.

Chat templates start every example with the same tokens, and the options of one question share its whole prompt. Each
distinct prefix becomes one node; a node attends to its ancestors only, and its position is its depth. A causal
transformer that takes its positions and mask from its caller answers for each node exactly as if the node's sequence
had been read alone, gradients included.

The nodes form one row, in depth-first order. So one number for each node, the index where its subtree ends, defines the
mask, and attention is computed piece by piece (`tree_attention.py`).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

if TYPE_CHECKING:
    from jaxtyping import Int


@dataclass(frozen=True)
class Tree:
    """The distinct prefixes of some sequences; several roots where they have no first token in common."""

    tokens: Int[Tensor, "1 nodes"]
    depth: Int[Tensor, "1 nodes"]
    ends: Int[Tensor, "1 1 1 nodes"]
    """Node i attends to node j if and only if j <= i < ends[j]."""
    paths: tuple[tuple[int, ...], ...]
    """The nodes of each sequence, in the order of its tokens."""

    @staticmethod
    def of(sequences: Sequence[Sequence[int]]) -> Tree:
        """The tree of `sequences`."""
        tokens: list[int] = []
        depth: list[int] = []
        ends: list[int] = []
        path: list[int] = []
        paths: list[tuple[int, ...]] = [()] * len(sequences)
        for index in _sort_order(sequences):
            own = sequences[index]
            shared = _common_length([tokens[node] for node in path], own)
            for node in path[shared:]:
                ends[node] = len(tokens)
            del path[shared:]
            for token in own[shared:]:
                path.append(len(tokens))
                tokens.append(token)
                depth.append(len(path) - 1)
                ends.append(0)
            paths[index] = tuple(path)
        for node in path:
            ends[node] = len(tokens)
        return Tree(torch.tensor([tokens]), torch.tensor([depth]), torch.tensor(ends)[None, None, None], tuple(paths))


@dataclass(frozen=True)
class Piece:
    """Neighbouring nodes whose attention is computed in one call."""

    start: int
    stop: int
    above: tuple[int, ...] = ()
    """Indices of the other pieces that these nodes attend to."""
    path: bool = False
    """Whether each node attends to all before it in the piece, as in one causal sequence."""

    @property
    def size(self) -> int:
        """How many nodes there are."""
        return self.stop - self.start


def pieces(ends: Sequence[int], most: int) -> list[Piece]:
    """All nodes of a tree, in pieces of whole subtrees with at most `most` nodes together.

    Of a larger subtree the path from its root to its first fork is a piece, which those below it attend to; a path
    without a fork is one piece, however long.
    """
    made: list[Piece] = []
    waiting: list[tuple[int, int, tuple[int, ...]]] = [(0, len(ends), ())]
    while waiting:
        start, end, above = waiting.pop()
        if start == end:
            continue
        stop = ends[start]
        if stop - start <= most:
            while stop < end and ends[stop] - start <= most:
                stop = ends[stop]
            waiting.append((stop, end, above))
        else:
            waiting.append((stop, end, above))
            fork = start + 1
            while fork < stop and ends[fork] == stop:
                fork += 1
            waiting.append((fork, stop, (*above, len(made))))
            stop = fork
        made.append(Piece(start, stop, above, path=all(end == ends[start] for end in ends[start:stop])))
    return made


def pairs(cut: Sequence[Piece]) -> int:
    """Pairs of query and key that attention computes."""
    return sum(piece.size * (piece.size + sum(cut[k].size for k in piece.above)) for piece in cut)


@dataclass(frozen=True)
class Layout:
    """The shape of one forward pass: how a batch lies side by side."""

    trees: int
    """Rows of the pass: one tree, or padded sequences, or images."""
    nodes: int
    """Positions of each; an image has one."""
    cut: tuple[Piece, ...] = ()
    """The pieces of a tree, whose attention is worked out one after the other."""

    @property
    def tokens(self) -> int:
        """Positions read, those that only fill up a row included; or images."""
        return self.trees * self.nodes

    @property
    def pairs(self) -> int:
        """Pairs of a position and one that it may look at, as attention works them out."""
        return pairs(self.cut) if self.cut else self.trees * self.nodes**2


def pack(sequences: Sequence[Sequence[int]], most: int) -> list[list[int]]:
    """Indices of `sequences` in groups whose trees have at most `most` nodes; neighbours in sorted order stay
    together."""
    groups: list[list[int]] = []
    used = 0
    before: Sequence[int] = ()
    for index in _sort_order(sequences):
        own = sequences[index]
        added = len(own) - _common_length(before, own)
        if not groups or used + added > most:
            groups.append([])
            used, added = 0, len(own)
        used += added
        groups[-1].append(index)
        before = own
    return groups


def _sort_order(sequences: Sequence[Sequence[int]]) -> list[int]:
    return sorted(range(len(sequences)), key=lambda k: tuple(sequences[k]))


def _common_length(one: Sequence[int], other: Sequence[int]) -> int:
    """Length of the prefix that two sequences share."""
    count = 0
    for a, b in zip(one, other, strict=False):
        if a != b:
            break
        count += 1
    return count
