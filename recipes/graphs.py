"""Links and nodes of graphs are deleted by several methods, beside networks retrained without them.

    python recipes/graphs.py run DATA docs/graphs.jsonl [--parts links nodes] [--data digits cora] [--layers gcn]
    python recipes/graphs.py show docs/graphs.jsonl           writes the tables of docs/graphs.md

links   a network (64, 32) learns the links of a graph; 5 % are deleted. A tenth, and as many unlinked pairs, test it
nodes   a network (16) learns the classes of three fifths of the nodes; 5 % of those are deleted. As many others, which
        are not in the network's graph, are the nodes that it never saw; the rest test it

digits is a graph of the 900 first images of scikit-learn's digits, each linked to the five nearest; DATA is a folder
with planetoid, which has cora and citeseer. The network's layers are a GCN's, a GAT's or a GIN's. A seed draws the
network, the split and what is deleted. Use one thread.
"""

from __future__ import annotations

import argparse
import copy
import itertools
import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from keeping import between, keep, rows
from sklearn.datasets import load_digits
from sklearn.neighbors import kneighbors_graph

from expunge import Method, Model, Network, Request, parse
from expunge.core.model import network_of
from expunge.core.question import LogProbabilities, Scores
from expunge.core.request import Example
from expunge.data.graphs import GraphExample, GraphRecord, KnownGraph, encode_for, read_graph
from expunge.internals.graphs import Graph
from expunge.models.graph import GraphNetwork
from expunge.primitives.statistics import auc
from expunge.run.choose import choose_method

PAGE = Path(__file__).parent.parent / "docs" / "graphs.md"
HERE = Path("drawn by the recipe")
Row = dict[str, Any]
STEPS = "adapter=Full(), learning_rate=0.001, batch=1024, retain_batch=1024, stop=None"
METHODS = {
    "TokenLevels": "TokenLevels",
    "Settle": "Settle",
    "D2DGN": "D2DGN",
    "D2DGNFeatures": "D2DGNFeatures",
    "GNNDelete": "GNNDelete(steps=500, learning_rate=0.01)",
    "GNNDelete, as published": "GNNDelete",
    "ascent, retain term": f"Finetune(objective=Ascent() + RetainNLL(), steps=15, {STEPS})",
    "ascent": f"Finetune(objective=Ascent(), steps=15, {STEPS})",
}
LEARN = {("links", "digits"): 400, ("links", "cora"): 100, ("links", "citeseer"): 100}
"""Steps of training on links, of 1,024 records each: with 400 a link predictor learns Cora's by heart."""
NODES = 120
"""The same on nodes."""


def digits() -> KnownGraph:
    """Images of digits, linked where one is among the five nearest of the other."""
    data = load_digits()
    pixels, label = data.data[:900] / 16, data.target[:900]
    near = kneighbors_graph(pixels, 5).tocoo()
    edges = np.unique(np.sort(np.stack([near.row, near.col]), axis=0), axis=1)
    features = torch.tensor(pixels, dtype=torch.float32)
    graph = Graph(torch.arange(900), features, torch.tensor(edges, dtype=torch.long))
    return KnownGraph(graph, torch.tensor(label, dtype=torch.long))


def graph_called(name: str, data: Path) -> KnownGraph:
    """The graph of that name."""
    return digits() if name == "digits" else read_graph(data / "planetoid" / f"{name}.npz")


@dataclass(frozen=True)
class Kind:
    """A kind of trial: links or nodes, of which graph, in a network of which layers."""

    part: str
    data: str
    layer: str

    @staticmethod
    def of(row: Row) -> Kind:
        """The kind that a row is of."""
        return Kind(row["part"], row["data"], row["layer"])


@dataclass(frozen=True)
class Trial:
    """What is learnt, deleted and asked, and a network that has learnt it."""

    kind: Kind
    blank: Callable[[int], GraphNetwork]
    """An untrained network over the graph with what is to be deleted, by its seed."""
    request: Request
    """`test` and, of links, `apart` are probes."""

    def learnt(self, network: GraphNetwork, examples: Sequence[Example], seed: int) -> Model:
        """A network that has learnt the examples."""
        epochs = LEARN.get((self.kind.part, self.kind.data), NODES) * 1024 / max(1024, len(examples))
        method = parse(
            f"Train(learning_rate=0.01, epochs={epochs}, batch=1024, schedule='constant', weight_decay=0.0005)"
        )
        assert isinstance(method, Method)
        return method.with_seed(seed)(network, Request(tuple(examples))).plain()


def links(kind: Kind, known: KnownGraph, seed: int) -> Trial:
    """Links to be deleted, retained and held out."""
    draw = torch.Generator().manual_seed(seed)
    pairs = known.graph.edges[:, torch.randperm(known.graph.edges.shape[1], generator=draw)].T.tolist()
    many = len(pairs)
    test, forget, retain = pairs[: many // 10], pairs[many // 10 : many * 3 // 20], pairs[many * 3 // 20 :]
    apart = list(
        dict.fromkeys(map(tuple, known.graph.draw_unlinked(4 * many, seed).view(-1, 2).sort(1).values.tolist()))
    )
    graph, _ = known.graph.without((), set(map(tuple, test)))
    blank = partial(GraphNetwork.draw, graph, (64, 32), kind.layer, "GraphForLinkPrediction")
    network = blank(seed=seed)

    def encode(some: Sequence[Sequence[int]], linked: bool) -> tuple[GraphExample, ...]:
        records = [GraphRecord(line, tuple(sorted(pair)), linked, known) for line, pair in enumerate(some, start=1)]
        return encode_for(records, network, HERE)

    unlinked = encode(apart, False)
    request = Request(
        encode(forget, True),
        (*encode(retain, True), *unlinked[len(test) : len(test) + len(retain)]),
        probes={"test": encode(test, True), "apart": unlinked[: len(test)]},
    )
    return Trial(kind, lambda drawn: blank(seed=drawn), request)


def nodes(kind: Kind, known: KnownGraph, seed: int) -> Trial:
    """Nodes to be deleted, retained, never seen, and to be tested on."""
    assert known.label is not None
    draw = torch.Generator().manual_seed(seed)
    order = [k for k in torch.randperm(len(known.label), generator=draw).tolist() if known.label[k] >= 0]
    learnt = len(order) * 3 // 5
    few = learnt // 20
    sets = {"forget": order[:few], "retain": order[few:learnt], "holdout": order[learnt : learnt + few]}
    graph, _ = known.graph.without(sets["holdout"], ())
    widths = (16, int(known.label.max()) + 1)
    blank = partial(GraphNetwork.draw, graph, widths, kind.layer, "GraphForNodeClassification")

    def encode(some: Sequence[int]) -> tuple[GraphExample, ...]:
        records = [GraphRecord(line, (node,), True, known) for line, node in enumerate(some, start=1)]
        return encode_for(records, blank(seed=seed), HERE)

    forget, retain, holdout = map(encode, sets.values())
    request = Request(forget, retain, holdout, probes={"test": encode(order[learnt + few :])})
    return Trial(kind, lambda drawn: blank(seed=drawn), request)


def models(trial: Trial, seed: int, wanted: Sequence[str]) -> Iterator[tuple[str, Model, float]]:
    """Each row's network, and the seconds that one thread took to make it."""
    request = trial.request
    made: dict[str, Model] = {}

    def timed(make: Callable[[], Model]) -> tuple[Model, float]:
        begun = time.process_time()
        return make(), time.process_time() - begun

    blank = trial.blank(seed)
    original, spent = timed(lambda: trial.learnt(blank, (*request.forget, *request.retain), seed))
    yield "original", original, spent
    left = original.without(request.forget)
    yield "the graph alone", left, 0.0
    for name, drawn in {"retrained": seed, "retrained again": seed + 100}.items():
        start = trial.blank(drawn).without(request.forget)
        made[name], spent = timed(partial(trial.learnt, start, request.retain, drawn))
        yield name, made[name], spent
    for name, text in METHODS.items():
        if name in wanted and (request.holdout or name != "TokenLevels"):  # which is Settle where nothing was held out
            method = choose_method(text, "graph").method
            method = method if name.startswith("D2DGN") else method.with_seed(seed)
            yield name, *timed(partial(forget, method, left, request))
    still = choose_method("D2DGN", "graph").method(original, request).plain()
    yield "D2DGN, deleted left in the graph", still.without(request.forget), 0.0
    yield "no weights", zeroed(network_of(left, "zeroed")), 0.0


def forget(method: Method, network: Model, request: Request) -> Model:
    """The network after a method."""
    return method(network, request).plain()


def zeroed(network: Network) -> Network:
    """The network whose weights are all 0."""
    module = copy.deepcopy(network.module)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.zero_()
    return network.fork(module)


# What is measured


def linked_ends(example: Example) -> bool:
    """Whether a pair is linked."""
    assert isinstance(example, GraphExample)
    return example.labels == (1,)


def ask_links(model: Model, request: Request, seed: int) -> Row:
    """AUC_t, AUC_f and what else is asked of links."""
    score = {name: model.ask(Scores(), some).logits[:, 1] for name, some in request.sets().items()}
    linked = score["retain"][torch.tensor([linked_ends(example) for example in request.retain])]
    few = linked[torch.randperm(len(linked), generator=torch.Generator().manual_seed(seed))[:500]]
    values = {name: some.tolist() for name, some in {**score, "few": few}.items()}
    return {
        "auc_t": auc(values["test"], values["apart"]),
        "auc_f": auc(values["few"], values["forget"]),
        "p_deleted": float(score["forget"].sigmoid().mean()),
        "p_never": float(score["test"].sigmoid().mean()),
        "p_retained": float(linked.sigmoid().mean()),
        "member": auc(values["forget"], values["test"]),
    }


def ask_nodes(model: Model, request: Request, retrained: Model) -> Row:
    """Right answers, losses, and how far the answers about deleted nodes are from a retrained network's."""
    said = {name: model.ask(LogProbabilities(), some) for name, some in request.sets().items()}
    now, wanted = (each.ask(Scores(), request.forget).logits.log_softmax(-1) for each in (model, retrained))
    return {
        **{f"right_{name}": float(reply.right.float().mean()) for name, reply in said.items()},
        **{f"loss_{name}": -float(reply.log_probs.mean()) for name, reply in said.items()},
        "member": auc(said["forget"].log_probs.tolist(), said["holdout"].log_probs.tolist()),
        "kl": float((wanted.exp() * (wanted - now)).sum(-1).mean()),
    }


def measure(kind: Kind, seed: int, places: Path, wanted: Sequence[str]) -> Iterator[Row]:
    """A row for each network."""
    of_links = kind.part == "links"
    trial = (links if of_links else nodes)(kind, graph_called(kind.data, places), seed)
    found = list(models(trial, seed, wanted))
    retrained = next(model for name, model, _ in found if name == "retrained")
    for name, model, spent in found:
        with torch.no_grad():
            asked = ask_links(model, trial.request, seed) if of_links else ask_nodes(model, trial.request, retrained)
        yield {**vars(kind), "seed": seed, "model": name, **asked, "cpu": spent}


# Tables

COLUMNS = {
    "links": {
        "auc_t": "AUC_t",
        "auc_f": "AUC_f",
        "p_deleted": "p of deleted",
        "p_never": "p of never seen",
        "p_retained": "p of retained",
        "member": "deleted against never seen",
        "cpu": "CPU s",
    },
    "nodes": {
        "right_test": "right, test",
        "right_forget": "right, deleted",
        "right_holdout": "right, never seen",
        "loss_forget": "loss, deleted",
        "loss_holdout": "loss, never seen",
        "member": "membership AUC",
        "kl": "KL from retrained",
        "cpu": "CPU s",
    },
}


def spell(values: Sequence[float]) -> str:
    """The mean of the seeds, and the least and the most."""
    mean = statistics.mean(values)
    digits = 1 if mean >= 10 else 2
    return f"{mean:.{digits}f} ({min(values):.{digits}f}-{max(values):.{digits}f})"


def tables(path: Path) -> Iterator[str]:
    """A table for each part and data."""
    groups: dict[Kind, dict[str, list[Row]]] = {}
    for row in rows(path):
        groups.setdefault(Kind.of(row), {}).setdefault(row["model"], []).append(row)
    for kind, found in groups.items():
        columns = COLUMNS[kind.part]
        seeds = len({row["seed"] for some in found.values() for row in some})
        yield f"{kind.part.capitalize()} of {kind.data}, {kind.layer.upper()}, {seeds} seeds:\n"
        yield f"| network | {' | '.join(columns.values())} |"
        yield "|---" * (1 + len(columns)) + "|"
        for name, some in found.items():
            yield f"| {name} | {' | '.join(spell([row[key] for row in some]) for key in columns)} |"
        yield ""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True)
    run = commands.add_parser("run")
    run.add_argument("places", type=Path)
    run.add_argument("out", type=Path)
    run.add_argument("--parts", nargs="+", default=["links", "nodes"])
    run.add_argument("--data", nargs="+", default=["digits", "cora", "citeseer"])
    run.add_argument("--layers", nargs="+", default=["gcn", "gat", "gin"])
    run.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    run.add_argument("--methods", nargs="+", default=list(METHODS))
    commands.add_parser("show").add_argument("out", type=Path)
    given = parser.parse_args()
    if given.command == "show":
        between(PAGE, "graphs", "\n".join(tables(given.out)).rstrip())
        return
    torch.set_num_threads(1)
    known = {(Kind.of(row), row["seed"], row["model"]) for row in rows(given.out)}
    for kind in (Kind(*words) for words in itertools.product(given.parts, given.data, given.layers)):
        for seed in given.seeds:
            wanted = [name for name in given.methods if (kind, seed, name) not in known]
            if wanted and (kind.part, wanted) != ("links", ["TokenLevels"]):
                for row in measure(kind, seed, given.places, wanted):
                    if (kind, seed, row["model"]) not in known:
                        keep(given.out, row)


if __name__ == "__main__":
    main()
