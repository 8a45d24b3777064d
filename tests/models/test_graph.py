"""Graph networks against their formulas in dense matrices; and what is deleted, which no message passes over."""

from pathlib import Path

import pytest
import torch
from torch.nn.functional import leaky_relu

from expunge import open_model
from expunge.core.question import HiddenStates, LogProbabilities, Scores
from expunge.data.graphs import GraphExample
from expunge.errors import ModelRefused
from expunge.internals.graphs import Graph, Vertex
from expunge.models.graph import GraphNetwork
from expunge.models.graph_layers import GAT, GCN, GIN, LAYERS
from tests.graphs import CLASSES, NODES, WIDTH, known, link_request, links, network, node_request

LAYER = pytest.mark.parametrize("layer", LAYERS)
LINKS = "GraphForLinkPrediction"


def dense() -> torch.Tensor:
    """A, the adjacency matrix."""
    graph = known().graph
    made = torch.zeros(NODES, NODES)
    made[graph.edges[0], graph.edges[1]] = 1
    return made + made.T


def directed() -> torch.Tensor:
    edges = known().graph.edges
    return torch.cat([edges, edges.flip(0)], 1)


# Parity with the papers' formulas, in dense matrices


def test_a_gcn_layer_is_the_normalised_adjacency_with_loops_times_states_times_weights():
    layer, x = GCN(WIDTH, 3), known().graph.features
    layer.bias.data.uniform_()
    loops = dense() + torch.eye(NODES)
    scale = torch.diag(loops.sum(1) ** -0.5)
    expected = scale @ loops @ scale @ x @ layer.linear.weight.T + layer.bias
    assert torch.allclose(layer(x, directed()), expected, atol=1e-5)


def test_a_gat_layer_is_a_softmax_over_each_node_and_its_neighbours():
    layer, x = GAT(WIDTH, 3), known().graph.features
    layer.bias.data.uniform_()
    made = x @ layer.linear.weight.T
    spoken, heard = (made @ layer.attend.weight[k] for k in range(2))
    scores = leaky_relu(heard[:, None] + spoken[None, :], 0.2)  # of v, in rows, for u
    shares = scores.masked_fill(dense() + torch.eye(NODES) == 0, -torch.inf).softmax(1)
    assert torch.allclose(layer(x, directed()), shares @ made + layer.bias, atol=1e-5)


def test_a_gin_layer_is_two_layers_over_the_sum_of_a_node_and_its_neighbours():
    layer, x = GIN(WIDTH, 3), known().graph.features
    layer.eps.data.fill_(0.25)
    layer.bias.data.uniform_()
    expected = layer.linear(torch.relu((1.25 * x + dense() @ x) @ layer.first.weight.T + layer.bias))
    assert torch.allclose(layer(x, directed()), expected, atol=1e-5)


def test_a_gcn_of_two_nodes_by_hand():
    layer = GCN(1, 1)
    layer.linear.weight.data.fill_(2.0)
    layer.bias.data.fill_(1.0)
    # Both have a degree of 2 with their loop: each is (h_1 + h_2) / 2 times 2, plus 1.
    made = layer(torch.tensor([[3.0], [5.0]]), torch.tensor([[0, 1], [1, 0]]))
    assert made.flatten().tolist() == pytest.approx([9.0, 9.0])


# What is asked


@LAYER
def test_nodes_are_rows_with_their_class_scores(layer: str, tmp_path: Path):
    request, asked = node_request(tmp_path), network(layer)
    said = asked.ask(Scores(), request.forget)
    assert torch.allclose(said.logits, asked.module.embed()[-1][:10])
    assert said.labels.tolist() == [k % CLASSES for k in range(10)]
    hidden = asked.ask(HiddenStates(0), request.forget[3:5])
    assert torch.allclose(hidden.states, asked.module.embed()[0][3:5])


def test_two_nodes_are_linked_with_the_sigmoid_of_their_product(tmp_path: Path):
    request, asked = link_request(tmp_path), network(kind=LINKS)
    one, other = links(linked=True)[0]
    last = asked.module.embed()[-1]
    said = asked.ask(LogProbabilities(), request.forget[:1])
    assert said.log_probs.exp().item() == pytest.approx(torch.sigmoid(last[one] @ last[other]).item(), abs=1e-6)
    apart = [example for example in request.retain if example.labels == (0,)]
    one, other = apart[0].pairs[0]
    said = asked.ask(LogProbabilities(), apart[:1])
    assert said.log_probs.exp().item() == pytest.approx(1 - torch.sigmoid(last[one] @ last[other]).item(), abs=1e-6)


@LAYER
@pytest.mark.parametrize("kind", ["GraphForNodeClassification", LINKS])
def test_it_is_saved_and_read_back_with_its_graph(layer: str, kind: str, tmp_path: Path):
    made = network(layer, kind)
    made.save(tmp_path / "model")
    read = open_model(tmp_path / "model")
    assert isinstance(read, GraphNetwork)
    assert read.fingerprint() == made.fingerprint()
    assert read.settings() == made.settings()
    torch.testing.assert_close(read.module.embed()[-1], made.module.embed()[-1])  # the last bit is the memory's


def test_a_graph_with_an_edge_to_no_node_is_refused(tmp_path: Path):
    made = network()
    made.module.edges = made.module.edges + 1
    made.save(tmp_path / "model")
    with pytest.raises(ModelRefused, match="its graph has edges of no node"):
        open_model(tmp_path / "model")


# What is deleted


def ask(asked: GraphNetwork, batch: tuple[GraphExample, ...]) -> torch.Tensor:
    return asked.ask(Scores(), batch).logits


def test_a_deleted_node_has_neither_features_nor_edges_in_the_graph_and_the_others_have_all_of_theirs(tmp_path: Path):
    request = node_request(tmp_path)
    graph = network().without(request.forget).graph
    assert graph.ids.tolist() == list(range(10, NODES))
    assert torch.equal(graph.features, known().graph.features[10:])
    assert sorted(graph.ids[graph.edges].T.tolist()) == [[a, b] for a, b in links(linked=True) if min(a, b) >= 10]


def test_a_deleted_edge_is_out_of_the_adjacency_in_both_directions_and_no_other_is(tmp_path: Path):
    request, before = link_request(tmp_path), network(kind=LINKS)
    graph = before.without(request.forget).graph
    assert sorted(map(tuple, graph.edges.T.tolist())) == links(linked=True)[8:]
    assert graph.ids.tolist() == list(range(NODES))
    assert before.graph.edges.shape[1] == len(links(linked=True)), "the network itself is left as found"


def test_an_edge_is_deleted_whichever_way_round_the_graph_has_it():
    graph = Graph(torch.tensor([2, 5, 9]), torch.zeros(3, 1), torch.tensor([[2, 1], [0, 2]]))
    left, stays = graph.without((), {(2, 9)})
    assert left.ids[left.edges].T.tolist() == [[5, 9]]
    assert stays.all()


@LAYER
def test_no_answer_depends_on_the_features_of_a_deleted_node(layer: str, tmp_path: Path):
    request, before = node_request(tmp_path), network(layer)
    other = before.fork()
    other.module.features = before.module.features.clone()
    other.module.features[:10] += 7.0
    assert not torch.allclose(ask(before, request.retain), ask(other, request.retain), atol=1e-3)
    one, two = (each.without(request.forget) for each in (before, other))
    assert torch.equal(ask(one, request.retain), ask(two, request.retain))
    assert one.fingerprint() == two.fingerprint()


@LAYER
def test_no_message_passes_over_a_deleted_edge(layer: str, tmp_path: Path):
    """The states are those of a network over a graph that never had it."""
    request, before = link_request(tmp_path), network(layer, LINKS)
    graph, _ = known().graph.without((), set(links(linked=True)[:8]))
    never = network(layer, LINKS, graph)
    assert torch.equal(before.without(request.forget).module.embed()[-1], never.module.embed()[-1])
    assert not torch.allclose(before.module.embed()[-1], never.module.embed()[-1], atol=1e-3)


@LAYER
def test_who_has_a_deleted_nodes_record_may_ask_and_nobody_else_hears_of_it(layer: str, tmp_path: Path):
    request, before = node_request(tmp_path), network(layer)
    after = before.without(request.forget)
    together = ask(after, (*request.forget, *request.retain))
    assert torch.allclose(together[10:], ask(after, request.retain), atol=1e-6)
    for place, example in enumerate(request.forget):
        assert torch.allclose(ask(after, (example,))[0], together[place], atol=1e-6)
    # As a guest it hears from its neighbours that are left.
    alone = Vertex(0, (), request.forget[0].ends[0][0].features)
    assert not torch.allclose(after.module.embed([alone])[-1][-1], together[0], atol=1e-3)


def test_a_guest_without_neighbours_that_are_left_is_asked_by_its_own_features(tmp_path: Path):
    request, asked = node_request(tmp_path), network()
    empty = asked.without((*request.forget, *request.holdout, *request.retain))
    assert empty.graph.ids.tolist() == []
    x, (first, second) = known().graph.features[:10], asked.module.layers
    expected = second.linear(torch.relu(first.linear(x) + first.bias)) + second.bias  # the degree is 1
    assert torch.allclose(ask(empty, request.forget), expected, atol=1e-5)


def test_what_is_deleted_twice_is_deleted_once(tmp_path: Path):
    request = node_request(tmp_path)
    once = network().without(request.forget)
    assert once.without(request.forget) is once
