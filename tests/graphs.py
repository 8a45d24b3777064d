"""A small made graph of four groups of nodes, a folder of it as a user has it, and tiny networks over it."""

from functools import cache
from pathlib import Path

import numpy as np
import torch

from expunge.core.request import Request
from expunge.data.graphs import GraphExample, KnownGraph, encode_for, load
from expunge.internals.graphs import Graph
from expunge.models.graph import GraphNetwork

NODES, WIDTH, CLASSES = 48, 6, 4


@cache
def known() -> KnownGraph:
    """Nodes are linked mostly within their group, and have drawn features."""
    draw = torch.Generator().manual_seed(0)
    label = torch.arange(NODES) % CLASSES
    alike = (label[:, None] == label).float()
    edges = (torch.rand(NODES, NODES, generator=draw) < 0.03 + 0.3 * alike).triu(1).nonzero().T.contiguous()
    return KnownGraph(Graph(torch.arange(NODES), torch.randn(NODES, WIDTH, generator=draw), edges), label)


def write_graph(folder: Path) -> Path:
    """The folder with `graph.npz` in it."""
    graph = known().graph
    arrays = {"features": graph.features, "edges": graph.edges.T, "label": known().label}
    folder.mkdir(parents=True, exist_ok=True)
    np.savez(folder / "graph.npz", **{name: tensor.numpy() for name, tensor in arrays.items()})
    return folder


def write_list(path: Path, lines: list[object]) -> Path:
    """A list of nodes, or of pairs of nodes."""
    path.write_text("".join(f"{' '.join(map(str, each)) if isinstance(each, tuple) else each}\n" for each in lines))
    return path


def network(layer: str = "gcn", kind: str = "GraphForNodeClassification", graph: Graph | None = None) -> GraphNetwork:
    """Two layers; a link predictor's states have as many numbers as there are classes."""
    made = GraphNetwork.draw(graph or known().graph, (8, CLASSES), layer, kind)
    with torch.no_grad():  # far from the start, where all answers look alike
        for parameter in made.module.parameters():
            if parameter.dim() > 1:
                torch.nn.init.normal_(parameter, std=0.3, generator=torch.Generator().manual_seed(1))
    return made


def links(*, linked: bool) -> list[tuple[int, int]]:
    """Pairs of nodes that are linked, or as many that are not."""
    graph = known().graph
    if linked:
        return [tuple(pair) for pair in graph.edges.T.tolist()]
    return [tuple(sorted(pair)) for pair in graph.draw_unlinked(2 * graph.edges.shape[1], 0).view(-1, 2).tolist()]


def examples(folder: Path, name: str, lines: list[object], asked: GraphNetwork) -> tuple[GraphExample, ...]:
    """Examples by way of their files."""
    path = write_list(write_graph(folder) / name, lines)
    return encode_for(load(path), asked, path)


def node_request(folder: Path) -> Request:
    """Ten nodes to forget, ten that count as never seen, and the others."""
    asked = network()
    sets = {"forget": range(10), "retain": range(20, NODES), "holdout": range(10, 20)}
    return Request(**{name: examples(folder, f"{name}.nodes", list(which), asked) for name, which in sets.items()})


def link_request(folder: Path) -> Request:
    """Eight links to forget, others and pairs without a link to retain."""
    asked, linked, apart = network(kind="GraphForLinkPrediction"), links(linked=True), links(linked=False)
    sets = {
        "forget": linked[:8],
        "retain": [*linked[16:], *((*pair, 0) for pair in dict.fromkeys(apart[:40]))],
        "holdout": linked[8:16],
    }
    return Request(**{name: examples(folder, f"{name}.edges", lines, asked) for name, lines in sets.items()})
