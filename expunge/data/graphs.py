"""Nodes and links of a graph, from a list of them and the graph that lies beside it.

    my-graph/graph.npz     numpy arrays: `edges` [edges, 2], numbers of nodes, each edge once, whichever way; `features`
                           [nodes, width], or as a sparse matrix `data`, `indices`, `indptr`, `shape` (scipy's CSR, as
                           Planetoid's files have it); and `label` [nodes], a class or -1, where nodes have classes
    my-graph/forget.nodes  a node's number in each line
    my-graph/forget.edges  the numbers of two nodes in each line, and 0 after them where they are not linked

An empty line, and what follows a #, is passed over. A network keeps the graph that it was made with; `graph.npz` says
what each record holds: a node's features, class and neighbours.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from expunge.data.kinds import LISTS
from expunge.data.records import SHOWN
from expunge.errors import DataRefused
from expunge.internals.graphs import Graph, Pair, Vertex

if TYPE_CHECKING:
    from collections.abc import Iterator

    from jaxtyping import Int
    from torch import Tensor

GRAPH = "graph.npz"
WANTED = f"nodes or links of a graph (a {' or '.join(LISTS)} list beside its {GRAPH})"


@dataclass(frozen=True)
class KnownGraph:
    """A graph as its file has it."""

    graph: Graph
    label: Int[Tensor, " nodes"] | None
    """The class of each node; -1 for none."""

    @cached_property
    def vertices(self) -> tuple[Vertex, ...]:
        """Every node with its features and all of its neighbours."""
        heard = self.graph.neighbours()
        return tuple(Vertex(node, heard[node], self.graph.features[node]) for node in heard)

    @cached_property
    def digests(self) -> tuple[bytes, ...]:
        """SHA-256 of each node's features."""
        return tuple(hashlib.sha256(row.numpy().tobytes()).digest() for row in self.graph.features)


@dataclass(frozen=True)
class GraphRecord:
    """A line of a list: a node, or two that are linked or not."""

    line: int
    named: tuple[int, ...]
    """The numbers of the node, or of both."""
    linked: bool
    known: KnownGraph = field(repr=False)


@dataclass(frozen=True)
class GraphExample:
    """A node with its class, or with its links; or two nodes, linked or not."""

    id: str
    ends: tuple[tuple[Vertex, ...], ...] = field(repr=False)
    labels: tuple[int, ...]
    nodes: tuple[int, ...]
    pairs: tuple[Pair, ...]
    digest: str = field(repr=False)
    """SHA-256 of the features of the nodes that it names."""
    weight: float = 1.0

    @property
    def rows(self) -> int:
        """One, or one for each link of a node."""
        return len(self.labels)

    @property
    def size(self) -> int:
        """As many as rows."""
        return len(self.labels)

    @property
    def alternatives(self) -> tuple[GraphExample, ...]:
        """Always empty: the other classes are the alternatives."""
        return ()

    def input_digest(self) -> bytes:
        """SHA-256 of the nodes, their features and neighbours, and of the labels."""
        heard = [[(end.id, end.neighbours) for end in row] for row in self.ends]
        return hashlib.sha256(f"{self.digest}:{heard}:{self.labels}".encode()).digest()

    def record_digest(self) -> str:
        """SHA-256 of the nodes, their features, and the labels."""
        return hashlib.sha256(f"{self.fact_digest()}:{self.labels}".encode()).hexdigest()

    def fact_digest(self) -> str:
        """SHA-256 of the nodes that it names, and their features: two nodes are linked in one set or not linked."""
        return hashlib.sha256(f"{self.nodes}:{self.pairs}:{self.ends[0][0].id}:{self.digest}".encode()).hexdigest()


def read_graph(path: Path) -> KnownGraph:
    """The graph of a `.npz` file. Raises `DataRefused` where it is none."""
    import numpy as np

    try:
        with np.load(path, allow_pickle=False) as file:
            arrays = {name: file[name] for name in file.files}
    except FileNotFoundError as error:
        raise DataRefused(f"{path}: no such file. Lists of nodes and edges lie beside their {GRAPH}.") from error
    except Exception as error:  # numpy and zipfile fail in their own ways on what is no such file
        raise DataRefused(f"{path}: is no .npz of plain arrays ({type(error).__name__}). Write it anew.") from error
    try:
        features = _read_features(arrays)
        edges = torch.from_numpy(arrays["edges"].astype("int64")).view(-1, 2)
        label = torch.from_numpy(arrays["label"].astype("int64")) if "label" in arrays else None
    except (KeyError, ValueError, TypeError, IndexError, RuntimeError) as error:
        raise DataRefused(
            f"{path}: must hold `edges` [edges, 2] and `features` [nodes, width], or `data`, `indices`, `indptr` and "
            f"`shape`; `label` [nodes] too, for classes. It holds: {', '.join(arrays)[:200] or 'nothing'}."
        ) from error
    many = len(features)
    if label is not None and label.shape != (many,):
        raise DataRefused(f"{path}: has {many} nodes and {label.numel()} labels. Give each node one; -1 is none.")
    if edges.numel() and not 0 <= int(edges.min()) <= int(edges.max()) < many:
        raise DataRefused(f"{path}: has an edge to a node that is not there; its nodes are 0 to {many - 1}. Fix it.")
    if not torch.isfinite(features).all():
        raise DataRefused(f"{path}: its features hold NaN or Inf. Fix them.")
    once = edges.sort(1).values.unique(dim=0)
    return KnownGraph(Graph(torch.arange(many), features, once[once[:, 0] < once[:, 1]].T.contiguous()), label)


def load(path: Path) -> list[GraphRecord]:
    """The lines of a list of nodes or edges, and the graph beside it."""
    if path.suffix.lower() not in LISTS:
        raise DataRefused(f"{path}: is no list of nodes or edges. Give {WANTED}.")
    known = read_graph(path.parent / GRAPH)
    try:
        lines = path.read_text(encoding="utf-8-sig").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise DataRefused(f"{path}: could not be read as text ({type(error).__name__}). Give {WANTED}.") from error
    records: list[GraphRecord] = []
    faults: list[str] = []
    for line, text in enumerate(lines, start=1):
        words = text.partition("#")[0].split()
        if words:
            made = _read_line(line, words, path.suffix.lower() == LISTS[1], known)
            (records if isinstance(made, GraphRecord) else faults).append(made)  # type: ignore[arg-type]
    if faults:
        more = f"; and {len(faults) - SHOWN} more" if len(faults) > SHOWN else ""
        raise DataRefused(f"{path}: {'; '.join(faults[:SHOWN])}{more}. Fix them; nothing was written.")
    if not records:
        raise DataRefused(f"{path}: names no nodes, so there is nothing to read. Give at least one.")
    return records


def _read_line(line: int, words: list[str], pairs: bool, known: KnownGraph) -> GraphRecord | str:
    last = len(known.graph.ids) - 1
    form = f"line {line}: must be {'two numbers of nodes, and 0 or 1' if pairs else 'a number of a node'}, 0 to {last}"
    if not all(word.isdecimal() and len(word) < 19 for word in words) or len(words) not in ((2, 3) if pairs else (1,)):
        return form
    *named, linked = [int(word) for word in (words if len(words) == 3 else (*words, "1"))]
    if max(named) > last or linked > 1 or len(set(named)) < len(named):
        return form
    return GraphRecord(line, tuple(sorted(named)), bool(linked), known)


def _read_features(arrays: dict[str, Any]) -> Tensor:
    if "features" in arrays:
        dense = torch.from_numpy(arrays["features"].astype("float32"))
        if dense.dim() != 2:
            raise ValueError
        return dense
    starts, columns = (torch.from_numpy(arrays[name].astype("int64")) for name in ("indptr", "indices"))
    made = torch.zeros(*map(int, arrays["shape"]))
    rows = torch.arange(len(made)).repeat_interleave(starts.diff())
    return made.index_put((rows, columns), torch.from_numpy(arrays["data"].astype("float32")))


def encode_for(records: list[GraphRecord], network: Any, path: Path) -> tuple[GraphExample, ...]:
    """The records as a graph network is asked about them."""
    width, known = network.graph.features.shape[1], records[0].known
    if known.graph.features.shape[1] != width:
        raise DataRefused(
            f"{path.parent / GRAPH}: its nodes have {known.graph.features.shape[1]} features, and the model's {width}. "
            f"Give the graph that the model was made with."
        )
    faults = [fault for record in records for fault in _find_faults(record, network)]
    if faults:
        more = f"; and {len(faults) - SHOWN} more" if len(faults) > SHOWN else ""
        raise DataRefused(f"{path}: {'; '.join(faults[:SHOWN])}{more}. Leave them out; nothing was written.")
    return tuple(_encode(record, network.links) for record in records)


def _find_faults(record: GraphRecord, network: Any) -> Iterator[str]:
    known, own = record.known, network.graph
    label = -1 if known.label is None else int(known.label[record.named[0]])
    if len(record.named) == 2 and not network.links:
        yield f"line {record.line}: two nodes, of which a model of nodes says nothing"
    if len(record.named) == 1 and not network.links and not 0 <= label < network.classes:
        yield f"line {record.line}: a node without one of the model's {network.classes} classes"
    if len(record.named) == 1 and network.links and not known.vertices[record.named[0]].neighbours:
        yield f"line {record.line}: a node without links"
    for node, place in zip(record.named, own.places(record.named).tolist(), strict=True):
        if place >= 0 and not torch.equal(own.features[place].cpu(), known.graph.features[node]):
            yield f"line {record.line}: node {node} has other features in the model's graph"


def _encode(record: GraphRecord, links: bool) -> GraphExample:
    vertices, named = record.known.vertices, record.named
    digest = hashlib.sha256(b"".join(record.known.digests[node] for node in named)).hexdigest()
    if len(named) == 2:
        one, other = named
        # What is asked is whether they are linked: neither hears from the other where it is asked as a guest.
        ends = (_leave_out(vertices[one], other), _leave_out(vertices[other], one))
        return GraphExample(f"{one}-{other}", (ends,), (int(record.linked),), (), ((one, other),), digest)
    own, label = vertices[named[0]], record.known.label
    if links:
        rows = tuple((own, vertices[node]) for node in own.neighbours)
        return GraphExample(str(own.id), rows, (1,) * len(rows), named, (), digest)
    assert label is not None
    return GraphExample(str(own.id), ((own,),), (int(label[own.id]),), named, (), digest)


def _leave_out(end: Vertex, other: int) -> Vertex:
    return Vertex(end.id, tuple(node for node in end.neighbours if node != other), end.features)
