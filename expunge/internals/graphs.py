"""Graphs: nodes with features and the edges between them; and what a graph network needs of an example."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Protocol, Self, runtime_checkable

import torch

from expunge.core.request import Example
from expunge.errors import DataRefused

if TYPE_CHECKING:
    from jaxtyping import Bool, Float, Int
    from torch import Tensor

Pair = tuple[int, int]
"""The ids of two nodes, the lower one first."""


@dataclass(frozen=True)
class Graph:
    """Nodes with features, and undirected edges between them: each once, without loops."""

    ids: Int[Tensor, " nodes"]
    """What files call each node, rising. A node keeps its id where others leave the graph."""
    features: Float[Tensor, "nodes width"] = field(repr=False)
    edges: Int[Tensor, "2 edges"] = field(repr=False)
    """The places of both ends of each edge among the nodes."""

    def places(self, ids: Sequence[int]) -> Int[Tensor, " asked"]:
        """Where each of the nodes is; -1 for one that is not in the graph."""
        asked = torch.as_tensor(ids, dtype=torch.long, device=self.ids.device).reshape(-1)
        if not len(self.ids):
            return torch.full_like(asked, -1)
        near = torch.searchsorted(self.ids, asked).clamp(max=len(self.ids) - 1)
        return torch.where(self.ids[near] == asked, near, -1)

    def without(self, nodes: Collection[int], pairs: Collection[Pair]) -> tuple[Graph, Bool[Tensor, " nodes"]]:
        """The graph without some nodes, their edges, and some other edges; and which of its nodes stay."""
        stays = torch.ones(len(self.ids), dtype=torch.bool, device=self.ids.device)
        gone = self.places(sorted(nodes))
        stays[gone[gone >= 0]] = False
        ends = self.places([end for pair in sorted(pairs) for end in pair]).view(-1, 2)
        cut = self._keys(ends[(ends >= 0).all(1)].T)
        kept = stays[self.edges].all(0) & ~torch.isin(self._keys(self.edges), cut)
        moved = stays.cumsum(0) - 1
        return Graph(self.ids[stays], self.features[stays], moved[self.edges[:, kept]]), stays

    def neighbours(self) -> dict[int, tuple[int, ...]]:
        """The ids of each node's neighbours."""
        found: dict[int, list[int]] = {int(node): [] for node in self.ids}
        for one, other in self.ids[self.edges].T.tolist():
            found[one].append(other)
            found[other].append(one)
        return {node: tuple(sorted(others)) for node, others in found.items()}

    def near(self, ids: Sequence[int], hops: int) -> Bool[Tensor, " nodes"]:
        """The nodes that are at most `hops` edges from one of `ids`, those among them."""
        places = self.places(ids)
        inside = torch.zeros(len(self.ids), dtype=torch.bool, device=self.ids.device)
        inside[places[places >= 0]] = True
        for _ in range(hops):
            touched = inside[self.edges].any(0)
            inside = inside.index_fill(0, self.edges[:, touched].flatten(), True)
        return inside

    def draw_unlinked(self, count: int, seed: int) -> Int[Tensor, " count"]:
        """Places of the ends of random pairs without an edge between them, one pair after the other."""
        generator, many = torch.Generator().manual_seed(seed), len(self.ids)
        linked = set(map(tuple, self.edges.sort(0).values.T.tolist()))
        if len(linked) >= many * (many - 1) // 2:
            raise DataRefused(f"All of the graph's {many} nodes are linked, so no unlinked pair can be drawn.")
        drawn: list[int] = []
        while len(drawn) < count:
            one, other = torch.randint(many, (2,), generator=generator).sort().values.tolist()
            if one != other and (one, other) not in linked:
                drawn += [one, other]
        return torch.tensor(drawn[:count], device=self.ids.device)

    def _keys(self, ends: Int[Tensor, "2 pairs"]) -> Int[Tensor, " pairs"]:
        """A number for each pair of places, whichever end comes first."""
        return ends.amin(0) * max(1, len(self.ids)) + ends.amax(0)


@dataclass(frozen=True)
class Vertex:
    """A node as its record has it: what it is asked by where the network's graph does not hold it."""

    id: int
    neighbours: tuple[int, ...] = field(repr=False)
    """The nodes that it hears from, by id."""
    features: Float[Tensor, " width"] = field(repr=False, compare=False)


@runtime_checkable
class Placed(Example, Protocol):
    """An example for a graph network: rows of one node, or of two that are linked or not."""

    @property
    def ends(self) -> tuple[tuple[Vertex, ...], ...]:
        """The node, or the two nodes, of each row."""

    @property
    def labels(self) -> tuple[int, ...]:
        """The class of each row; of two nodes 1 where they are linked, else 0."""

    @property
    def nodes(self) -> tuple[int, ...]:
        """The ids of the nodes that leave a graph with it."""

    @property
    def pairs(self) -> tuple[Pair, ...]:
        """The edges that leave a graph with it, beside those of `nodes`."""


@runtime_checkable
class MessagePassing(Protocol):
    """A module whose layers pass messages over a graph that it holds."""

    @property
    def graph(self) -> Graph:
        """What it passes messages over."""

    def embed(self, guests: Sequence[Vertex] = ()) -> list[Float[Tensor, "nodes _width"]]:
        """States of all nodes after each layer, before its activation; those of `guests` come last."""

    def add_operators(self, regions: Bool[Tensor, "layers nodes"]) -> tuple[Self, Sequence[Any]]:
        """A copy with one more matrix after each layer, for the nodes of its region alone; and these matrices, which
        begin as the identity."""
