"""Graph networks, GCN, GAT and GIN: a row for each node with its class, or for each two nodes, linked or not.

The network's folder holds the graph that messages pass over. What is deleted leaves it: `without` gives the network
whose graph lacks the nodes and edges of some examples. A node that the graph does not hold can still be asked about, by
who has its record: its features join the last row, it hears from its neighbours that are there, and nobody hears from
it, so that no other answer depends on it.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, cast

import torch
from torch import Tensor, nn
from transformers import AutoConfig, PreTrainedConfig, PreTrainedModel

from expunge.core.model import Network, answers
from expunge.core.predictions import Hidden, Predictions, weights_of
from expunge.core.question import HiddenStates, Scores
from expunge.errors import ModelRefused, UsageRefused
from expunge.internals.graphs import Graph, Placed, Vertex
from expunge.models._family import Family
from expunge.models.graph_layers import LAYERS, Operator
from expunge.models.source import Source, config_of, config_text, load_module, refuse_adapted
from expunge.models.stored import Stored, stored_of, write_module
from expunge.runtime.atomic_files import open_to_readers

if TYPE_CHECKING:
    from expunge.core.model import Batch

AT_ONCE = 16_384
"""Most examples in one pass over the graph."""


class GraphConfig(PreTrainedConfig):
    """What a graph network is made of."""

    model_type = "expunge_graph"
    layer: str = "gcn"
    """gcn, gat or gin."""
    widths: list[int] | tuple[int, ...] = (1, 1)
    """Of the features and of each layer's states; the last is the number of classes, or the width of an embedding."""
    nodes: int = 0
    edges: int = 0
    operators: int = 0
    """How many times deletion operators were added."""


class GraphModule(PreTrainedModel):
    """Layers over a graph, which is part of the module: what it holds is what messages pass over."""

    config_class = GraphConfig
    main_input_name = "guests"
    ends: ClassVar[int]
    """How many nodes a row is of."""
    ids: Tensor
    features: Tensor
    edges: Tensor
    regions: Tensor

    def __init__(self, config: Any) -> None:
        super().__init__(config)
        pairs = list(zip(config.widths, config.widths[1:], strict=False))
        if config.layer not in LAYERS or not pairs:
            raise ModelRefused(f"A graph network has layers of {', '.join(LAYERS)}. Got {str(config.layer)[:40]!r}.")
        self.layers = nn.ModuleList(LAYERS[config.layer](*pair) for pair in pairs)
        self.operators = nn.ModuleList(
            nn.ModuleList(Operator(out) for _, out in pairs) for _ in range(config.operators)
        )
        self.register_buffer("ids", torch.arange(config.nodes))
        self.register_buffer("features", torch.zeros(config.nodes, config.widths[0]))
        self.register_buffer("edges", torch.zeros(2, config.edges, dtype=torch.long))
        self.register_buffer("regions", torch.zeros(config.operators, len(pairs), config.nodes, dtype=torch.bool))
        self.post_init()  # type: ignore[no-untyped-call]

    @property
    def graph(self) -> Graph:
        """What messages pass over."""
        return Graph(self.ids, self.features, self.edges)

    def hold(self, graph: Graph, regions: Tensor) -> None:
        """Put another graph in place of the module's own, with the regions of its operators."""
        self.ids, self.features, self.edges, self.regions = graph.ids, graph.features, graph.edges, regions
        self.config.nodes, self.config.edges = len(graph.ids), graph.edges.shape[1]
        self.config.operators = len(regions)

    def embed(self, guests: Sequence[Vertex] = ()) -> list[Tensor]:
        """States of all nodes after each layer, before its activation; those of `guests` come last."""
        graph, many = self.graph, len(guests)
        states = graph.features
        if guests:
            states = torch.cat([states, torch.stack([guest.features for guest in guests]).to(states)])
        edges = torch.cat([graph.edges, graph.edges.flip(0), self._lead_to(guests)], 1)
        regions = nn.functional.pad(self.regions, (0, many))  # operators leave guests alone
        made: list[Tensor] = []
        for number, layer in enumerate(self.layers):
            states = layer(states, edges)
            for operators, region in zip(self.operators, regions, strict=True):
                states = cast(nn.ModuleList, operators)[number](states, region[number])
            made.append(states)
            states = torch.relu(states)
        return made

    def _lead_to(self, guests: Sequence[Vertex]) -> Tensor:
        """The edges from nodes of the graph to guests."""
        own = [(number, heard) for number, guest in enumerate(guests) for heard in guest.neighbours]
        places = self.graph.places([heard for _, heard in own])
        numbers = torch.tensor([number for number, _ in own], dtype=torch.long, device=places.device)
        return torch.stack([places, len(self.graph.ids) + numbers])[:, places >= 0]

    def add_operators(self, regions: Tensor) -> tuple[GraphModule, list[nn.Parameter]]:
        """A copy with one more matrix after each layer, for the nodes of its region alone; and these matrices."""
        made = copy.deepcopy(self)
        added = [Operator(width).to(regions.device) for width in self.config.widths[1:]]
        made.operators.append(nn.ModuleList(added))
        made.hold(self.graph, torch.cat([self.regions, regions[None]]))
        return made, [operator.weight for operator in added]

    def rows(self, ends: Sequence[Tensor]) -> Tensor:
        """Class scores of rows, from the last states of each row's ends."""
        raise NotImplementedError


class GraphForNodeClassification(GraphModule):
    """A node's last state are its class scores."""

    ends: ClassVar[int] = 1

    def rows(self, ends: Sequence[Tensor]) -> Tensor:
        return ends[0]


class GraphForLinkPrediction(GraphModule):
    """Two nodes are linked with the probability sigmoid(u . v) of their last states u, v: scores 0 and u . v."""

    ends: ClassVar[int] = 2

    def rows(self, ends: Sequence[Tensor]) -> Tensor:
        product = (ends[0] * ends[1]).sum(-1)
        return torch.stack([torch.zeros_like(product), product], -1)


KINDS: dict[str, type[GraphModule]] = {
    kind.__name__: kind for kind in (GraphForNodeClassification, GraphForLinkPrediction)
}
AutoConfig.register(GraphConfig.model_type, GraphConfig)


@dataclass(frozen=True)
class GraphNetwork(Network):
    """A graph network, with the graph that it passes messages over."""

    family: ClassVar[str] = "graph"
    module: Any
    stored: Stored | None = field(repr=False, default=None)
    """How its file holds the weights; None: as they are in memory."""

    @staticmethod
    def load(source: Source, kind: str, device: str, storage_device: str | None) -> GraphNetwork:
        """From a folder; never pickle."""
        module = load_module(source, KINDS[kind], torch.float32)
        network = GraphNetwork(module.to(storage_device or device), stored_of(source, module.config))
        network.check(source.name)
        return network

    @staticmethod
    def draw(
        graph: Graph, widths: Sequence[int], layer: str = "gcn", kind: str = "GraphForNodeClassification", seed: int = 0
    ) -> GraphNetwork:
        """An untrained network over a graph; `widths` are those of each layer's states: the last is the number of
        classes, or that of an embedding."""
        shape = GraphConfig(layer=layer, widths=[graph.features.shape[1], *widths])
        with torch.random.fork_rng(devices=()):
            torch.manual_seed(seed)
            module = KINDS[kind](shape)
        module.hold(graph, torch.zeros(0, len(widths), len(graph.ids), dtype=torch.bool))
        module.train(False).requires_grad_(False)
        return GraphNetwork(module)

    def check(self, name: str) -> None:
        """Refuse a graph that is none: ids that do not rise, edges that lead nowhere."""
        graph = self.module.graph
        rising = bool((graph.ids.diff() > 0).all())
        inside = bool(((graph.edges >= 0) & (graph.edges < len(graph.ids))).all())
        if not rising or not inside:
            raise ModelRefused(f"{name}: its graph has {'edges' if rising else 'ids'} of no node. Fetch it again.")

    @property
    def links(self) -> bool:
        """Whether a row is two nodes; else it is one."""
        return bool(self.module.ends == 2)

    @property
    def classes(self) -> int:
        """How many classes a row has."""
        return 2 if self.links else int(self.module.config.widths[-1])

    @property
    def graph(self) -> Graph:
        """What messages pass over."""
        return cast(Graph, self.module.graph)

    @answers(Scores)
    def _scores(self, _question: Scores, batch: Sequence[Placed]) -> Predictions:
        states, ends = self._embed(batch)
        scores = self.module.rows([states[-1][places] for places in ends])
        return Predictions(*self._rows(batch), weights=weights_of(batch), states=scores)

    @answers(HiddenStates)
    def _hidden_states(self, question: HiddenStates, batch: Sequence[Placed]) -> Hidden:
        """States after a layer, before its activation; of a row of two nodes both, side by side."""
        number = question.block(len(self.module.layers))
        states, ends = self._embed(batch)
        both = torch.cat([states[number][places] for places in ends], -1)
        return Hidden(*self._rows(batch), weights=weights_of(batch), states=both)

    def _embed(self, batch: Sequence[Placed]) -> tuple[list[Tensor], list[Tensor]]:
        """States after each layer, and for the first and the second end of all rows where they are among them."""
        rows = [row for example in batch for row in example.ends]
        ends = [[row[number] for row in rows] for number in range(self.module.ends)]
        places = [self.graph.places([end.id for end in some]) for some in ends]
        absent = [(number, row) for number, some in enumerate(places) for row in (some < 0).nonzero()[:, 0].tolist()]
        guests: dict[Vertex, int] = {}
        for number, row in absent:
            places[number][row] = guests.setdefault(ends[number][row], len(self.graph.ids) + len(guests))
        with torch.inference_mode(False), torch.set_grad_enabled(torch.is_grad_enabled()):
            return self.module.embed(list(guests)), places

    def _rows(self, batch: Sequence[Placed]) -> tuple[Tensor, Tensor, int, None]:
        """The first fields of `Rows`: labels, owner of each row, number of examples, and no share."""
        labels = [label for example in batch for label in example.labels]
        owner = [number for number, example in enumerate(batch) for _ in example.labels]
        return torch.tensor(labels, device=self.device), torch.tensor(owner, device=self.device), len(batch), None

    def batches(self, examples: Batch) -> Iterator[list[int]]:
        for start in range(0, len(examples), AT_ONCE):
            yield list(range(start, min(start + AT_ONCE, len(examples))))

    def without(self, examples: Batch) -> GraphNetwork:
        """The same weights over a graph without the nodes and edges of `examples`."""
        placed = cast("Sequence[Placed]", examples)
        nodes = {node for example in placed for node in example.nodes}
        graph, stays = self.graph.without(nodes, {pair for example in placed for pair in example.pairs})
        if graph.edges.shape == self.graph.edges.shape and bool(stays.all()):
            return self
        network = self.fork()
        network.module.hold(graph, self.module.regions[..., stays])
        return network

    def settings(self) -> str:
        return config_text(self.module.config)

    def save(self, folder: Path) -> None:
        write_module(refuse_adapted(self.module), self.stored and replace(self.stored, shard=0), folder)
        for path in folder.iterdir():
            open_to_readers(path)


@dataclass(frozen=True)
class GraphFamily(Family):
    """Networks over the nodes of a graph."""

    name: ClassVar[str] = "graph"
    records: ClassVar[str] = "graphs"
    unit: ClassVar[str] = "nodes or links"
    defaults: ClassVar[tuple[str, str]] = ("TokenLevels", "Settle")
    limits: ClassVar[tuple[str, ...]] = (
        "A deleted node is asked about as who has its record asks: by its features and the neighbours that are left.",
        "That the graph lacks what was deleted is seen in the model's folder; ids that are missing tell which nodes.",
    )
    kind: ClassVar[str] = "a graph network"
    endings: ClassVar[tuple[str, ...]] = ("GraphForNodeClassification", "GraphForLinkPrediction")

    def has(self, config: Any) -> bool:
        return bool(config.model_type == GraphConfig.model_type)

    def open(self, source: Source, device: str, storage_device: str | None) -> GraphNetwork:
        kind = (config_of(source).architectures or [""])[0]
        if kind not in KINDS:
            raise UsageRefused(f"{source.name}: config.json must name {' or '.join(KINDS)} as its architecture.")
        return GraphNetwork.load(source, kind, device, storage_device)


FAMILY = GraphFamily()
