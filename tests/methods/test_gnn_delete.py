"""GNNDelete by hand, and what its matrices touch."""

from pathlib import Path

import pytest
import torch

from expunge import open_model, parse
from expunge.core.question import Scores
from expunge.errors import UsageRefused
from expunge.internals.graphs import Graph
from expunge.methods.gnn_delete import GNNDelete
from tests.families import assert_as_found, family_of, state
from tests.graphs import link_request, links, network, node_request

LINKS = "GraphForLinkPrediction"


def test_the_loss_is_a_mean_over_the_ends_and_one_over_the_nodes_around_them():
    before = [torch.tensor([[0.0, 0.0], [1.0, 1.0], [2.0, 0.0], [5.0, 5.0]])]
    now = [torch.tensor([[1.0, 0.0], [1.0, 3.0], [2.0, 4.0], [9.0, 9.0]])]
    regions = torch.tensor([[True, True, True, False]])
    ends, unlinked = torch.tensor([0, 1]), torch.tensor([2, 3])
    # ends: (1, 0) to (2, 0), (1, 3) to (5, 5): (1 + 0 + 16 + 4) / 4; around them node 2 alone: (0 + 16) / 2
    (loss,) = GNNDelete(alpha=0.25).losses(now, before, regions, ends, unlinked)
    assert loss.item() == pytest.approx(0.25 * 21 / 4 + 0.75 * 8)


def test_the_neighbourhood_grows_by_an_edge_a_layer():
    path = Graph(torch.arange(5), torch.zeros(5, 1), torch.tensor([[0, 1, 2, 3], [1, 2, 3, 4]]))
    assert path.near([1], 1).tolist() == [True, True, True, False, False]
    assert path.near([1], 2).tolist() == [True, True, True, True, False]
    assert path.near([7], 2).tolist() == [False] * 5


def test_pairs_that_are_drawn_have_no_edge_and_are_the_same_twice():
    graph = network().graph
    drawn = graph.draw_unlinked(100, 3)
    assert not {tuple(sorted(pair)) for pair in drawn.view(-1, 2).tolist()} & set(links(linked=True))
    assert torch.equal(drawn, graph.draw_unlinked(100, 3))


@pytest.mark.parametrize("layer", ["gcn", "gin"])
def test_only_the_neighbourhood_changes_and_the_loss_falls(layer: str, tmp_path: Path):
    request = link_request(tmp_path)
    left = network(layer, LINKS).without(request.forget[:1])
    was = state(left)
    one, other = request.forget[0].pairs[0]
    few = type(request)(request.forget[:1], request.retain)
    result = GNNDelete(steps=60, learning_rate=0.02)(left, few)
    assert_as_found(left, was)
    near = left.graph.near([one, other], 2)
    assert torch.equal(result.module.regions[0], torch.stack([left.graph.near([one, other], 1), near]))
    assert 2 < int(near.sum()) < len(near)
    before, after = left.module.embed(), result.module.embed()
    moved = (after[-1] - before[-1]).abs().amax(1) > 1e-4
    assert moved[near].any()
    # A node outside may hear from one inside; beyond that nothing arrives.
    assert not moved[~left.graph.near([one, other], 3)].any()
    ends, regions = torch.tensor([one, other]), result.module.regions[0]
    unlinked = left.graph.draw_unlinked(2, 0)
    losses = [GNNDelete().losses(states, before, regions, ends, unlinked) for states in (before, after)]
    assert all(now < then for then, now in zip(*losses, strict=True))


def test_the_same_seed_gives_the_same_twice_and_its_name_is_read_back(tmp_path: Path):
    request, left = link_request(tmp_path), network(kind=LINKS)
    one, again, other = (GNNDelete(steps=3, seed=seed)(left, request).fingerprint() for seed in (0, 0, 1))
    assert one == again != other
    assert parse(repr(GNNDelete(alpha=0.25))) == GNNDelete(alpha=0.25)


def test_with_the_identity_and_no_learning_nothing_changes(tmp_path: Path):
    request, left = link_request(tmp_path), network(kind=LINKS)
    result = GNNDelete(steps=1, learning_rate=1e-30)(left, request)
    assert torch.allclose(result.ask(Scores(), request.retain).logits, left.ask(Scores(), request.retain).logits)


def test_the_result_is_saved_read_back_and_deleted_from_again(tmp_path: Path):
    request = node_request(tmp_path)
    left = network().without(request.forget)
    result = GNNDelete(steps=2)(left, request)
    result.save(tmp_path / "model")
    read = open_model(tmp_path / "model")
    assert read.fingerprint() == result.fingerprint()
    # Not to the last bit: how a processor adds up may depend on where in memory a matrix lies.
    assert torch.allclose(read.module.embed()[-1], result.module.embed()[-1], atol=1e-6)
    again = read.without(request.holdout)
    assert again.module.regions.shape == (1, 2, len(again.graph.ids))
    twice = GNNDelete(steps=2)(again, type(request)(request.holdout, request.retain))
    assert twice.module.config.operators == 2
    twice.save(tmp_path / "twice")
    assert open_model(tmp_path / "twice").fingerprint() == twice.fingerprint()


def test_a_network_without_a_graph_is_refused_in_a_line():
    picture, request = family_of("resnet")
    with pytest.raises(UsageRefused, match="GNNDelete is for graph networks, and ImageClassifier is none"):
        GNNDelete()(picture, request)
