"""Graphs and lists of their nodes and edges, as files have them; and what is refused of them, in a line."""

from pathlib import Path

import numpy as np
import pytest
import torch

from expunge.core.request import Request
from expunge.data.graphs import encode_for, load, read_graph
from expunge.errors import DataRefused
from tests.graphs import NODES, examples, known, links, network, write_graph, write_list

LINKS = "GraphForLinkPrediction"


def test_a_graph_is_read_as_it_was_written_each_edge_once_and_without_loops(tmp_path: Path):
    graph = known().graph
    both = torch.cat([graph.edges, graph.edges.flip(0), torch.tensor([[3], [3]])], 1)
    np.savez(tmp_path / "graph.npz", features=graph.features.numpy(), edges=both.T.numpy())
    read = read_graph(tmp_path / "graph.npz")
    assert torch.equal(read.graph.edges, graph.edges)
    assert torch.equal(read.graph.features, graph.features)
    assert read.label is None


def test_sparse_features_are_those_of_the_matrix(tmp_path: Path):
    rows = {"indptr": [0, 2, 2, 3], "indices": [0, 3, 1], "data": [1.0, 2.0, 5.0], "shape": [3, 4]}
    np.savez(tmp_path / "graph.npz", edges=np.zeros((0, 2), int), **{k: np.array(v) for k, v in rows.items()})
    assert read_graph(tmp_path / "graph.npz").graph.features.tolist() == [[1, 0, 0, 2], [0, 0, 0, 0], [0, 5, 0, 0]]


def test_a_node_is_one_row_with_its_class_and_an_edge_one_that_is_linked_or_not(tmp_path: Path):
    nodes = examples(tmp_path, "a.nodes", [5, 7], network())
    assert [(each.id, each.labels, each.nodes, each.pairs) for each in nodes] == [
        ("5", (1,), (5,), ()),
        ("7", (3,), (7,), ()),
    ]
    (one, other), apart = links(linked=True)[0], links(linked=False)[0]
    pairs = examples(tmp_path, "a.edges", [(other, one), (*apart, 0)], network(kind=LINKS))
    assert [(each.labels, each.nodes, each.pairs) for each in pairs] == [
        ((1,), (), ((one, other),)),
        ((0,), (), (apart,)),
    ]
    # Where one end is a guest, it does not hear from the other: that is what is asked.
    assert other not in pairs[0].ends[0][0].neighbours


def test_a_node_of_a_link_predictor_is_a_row_for_each_of_its_links(tmp_path: Path):
    (example,) = examples(tmp_path, "a.nodes", [5], network(kind=LINKS))
    neighbours = known().graph.neighbours()[5]
    assert [tuple(end.id for end in row) for row in example.ends] == [(5, other) for other in neighbours]
    assert example.labels == (1,) * len(neighbours)
    assert example.rows == example.size == len(neighbours) > 1


def test_comments_and_empty_lines_are_passed_over(tmp_path: Path):
    path = write_graph(tmp_path) / "a.nodes"
    path.write_text("# to forget\n\n5 # this one\n7\n")
    assert [record.named for record in load(path)] == [(5,), (7,)]


def test_two_nodes_with_the_same_features_are_two_records_and_one_in_two_sets_is_refused(tmp_path: Path):
    np.savez(tmp_path / "graph.npz", features=np.zeros((4, 6)), edges=np.array([[0, 1]]), label=np.zeros(4))
    asked = network()
    sets = {}
    for name, lines in {"forget": [0], "retain": [1]}.items():
        path = write_list(tmp_path / f"{name}.nodes", lines)
        records = load(path)
        asked.module.hold(records[0].known.graph, asked.module.regions[..., :4])
        sets[name] = encode_for(records, asked, path)
    assert Request(**sets).fingerprint()
    with pytest.raises(DataRefused, match="in the forget set and in the retain set"):
        Request(sets["forget"], sets["forget"])


@pytest.mark.parametrize(
    ("name", "text", "said"),
    [
        ("a.nodes", "0\nx\n48\n", r"line 2: must be a number of a node, 0 to 47; line 3: "),
        ("a.nodes", "1 2\n", "line 1: must be a number of a node"),
        ("a.edges", "3\n4 4\n1 2 5\n", r"line 1: must be two numbers.*; line 2: .*; line 3: "),
        ("a.nodes", "\n# nothing\n", "names no nodes"),
        ("a.txt", "1\n", "is no list of nodes or edges"),
    ],
)
def test_a_list_that_cannot_be_used_is_refused_with_the_place_of_each_fault(
    tmp_path: Path, name: str, text: str, said: str
):
    path = write_graph(tmp_path) / name
    path.write_text(text)
    with pytest.raises(DataRefused, match=said):
        load(path)


@pytest.mark.parametrize(
    ("arrays", "said"),
    [
        ({"edges": np.array([[0, 9]])}, "an edge to a node that is not there; its nodes are 0 to 2"),
        ({"features": np.array(["a", "b"])}, "must hold `edges`"),
        ({"label": np.array([1, 2])}, "3 nodes and 2 labels"),
        ({"features": np.full((3, 2), np.nan)}, "NaN or Inf"),
        ({"edges": np.array([{}], dtype=object)}, "no .npz of plain arrays"),
    ],
)
def test_a_graph_that_cannot_be_used_is_refused_in_a_line(tmp_path: Path, arrays: dict, said: str):
    whole = {"features": np.ones((3, 2)), "edges": np.array([[0, 1]]), "label": np.array([0, 1, 2])}
    np.savez(tmp_path / "graph.npz", **{**whole, **arrays})
    with pytest.raises(DataRefused, match=said):
        read_graph(tmp_path / "graph.npz")


def test_a_list_without_a_graph_beside_it_is_refused(tmp_path: Path):
    with pytest.raises(DataRefused, match=r"graph.npz: no such file. Lists of nodes and edges lie beside"):
        load(write_list(tmp_path / "a.nodes", [1]))


def test_what_a_model_cannot_be_asked_is_refused(tmp_path: Path):
    with pytest.raises(DataRefused, match="line 1: two nodes, of which a model of nodes says nothing"):
        examples(tmp_path, "a.edges", [(1, 2)], network())
    asked = network()
    asked.module.features = asked.module.features + 1
    with pytest.raises(DataRefused, match="line 1: node 5 has other features in the model's graph"):
        examples(tmp_path, "a.nodes", [5], asked)
    path = write_list(write_graph(tmp_path) / "a.nodes", [NODES - 1])
    record = load(path)
    record[0].known.label[NODES - 1] = -1
    with pytest.raises(DataRefused, match="line 1: a node without one of the model's 4 classes"):
        encode_for(record, network(), path)
