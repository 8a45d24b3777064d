"""The whole job on a graph, from files: train, forget, audit, attack, report; and what has left the graph by then."""

import json
from pathlib import Path

import pytest
import torch
from torch import Tensor

from expunge import open_model, parse, read_request
from expunge.core.model import Model
from expunge.core.question import LogProbabilities
from expunge.data.kinds import kind_of
from expunge.errors import ModelRefused
from expunge.models.graph import GraphNetwork
from expunge.models.sketch import reads_images
from expunge.run import train
from expunge.run.choose import choose_method, default_method
from expunge.run.job import Job, audit, forget
from expunge.run.prepare import Inputs
from expunge.run.train import Material, TrainJob
from tests.graphs import CLASSES, NODES, known, link_request, network, node_request, write_graph, write_list

AUDITS = "Accuracy, Loss, LossMembership"
LEARN = "Train(learning_rate=0.03, epochs=40.0, batch=64, schedule='constant')"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A user's folder: the graph, lists, and a network that has learnt the nodes to forget and those to retain."""
    root = tmp_path_factory.mktemp("graph")
    write_graph(root)
    sets = {
        "forget": range(8),
        "holdout": range(8, 16),
        "retain": range(16, NODES),
        "learnt": [*range(8), *range(16, NODES)],
    }
    for name, which in sets.items():
        write_list(root / f"{name}.nodes", list(which))
    # What counts as never seen is not in the network's graph either.
    graph, _ = known().graph.without(range(8, 16), ())
    GraphNetwork.draw(graph, (16, CLASSES)).save(root / "start")
    made = TrainJob(str(root / "start"), Material((root / "learnt.nodes",)), root / "gcn", method=LEARN)
    assert train.train(made, lambda event: None).losses[-1] < 0.3
    return root


def job(root: Path, out: Path, **asked: object) -> Job:
    inputs = Inputs(root / "forget.nodes", root / "retain.nodes", root / "holdout.nodes")
    return Job(
        **{"model": str(root / "gcn"), "inputs": inputs, "out": out, "checkpoint_every": 0, "audits": AUDITS, **asked}
    )


def test_the_job_forgets_nodes_that_leave_the_graph_and_attack_and_report_follow(folder: Path, tmp_path: Path):
    notes: list[str] = []
    made = forget(
        job(folder, tmp_path / "out", method="Settle(steps=20, learning_rate=0.02)"),
        lambda event: notes.append(getattr(event, "what", "")),
    )
    assert "What is to be forgotten has left the graph that the model holds" in notes
    found = {(f.set, f.audit, f.model): f.value for f in made.findings}
    assert found["forget", "Loss", "after"] > found["forget", "Loss", "before"] + 0.3
    assert {name for _, name, _ in found} >= {"Loss", "Accuracy", "LossMembership"}
    after = open_model(tmp_path / "out" / "model")
    assert after.graph.ids.tolist() == list(range(16, NODES))
    assert after.fingerprint() == made.result
    told = json.loads((tmp_path / "out" / "report.json").read_text())
    assert told["original"]["family"] == "graph"
    assert told["request"]["sets"]["forget"]["examples"] == 8
    assert told["request"]["unit"] == "nodes or links"
    assert (tmp_path / "out" / "report.html").is_file()
    card = (tmp_path / "out" / "model" / "README.md").read_text()
    assert "`expunge.open_model` loads them" in card
    assert "library_name: transformers" not in card
    # The result is a model like any other: it is audited and attacked with the same files.
    again = audit(job(folder, tmp_path / "audited", model=str(tmp_path / "out")), lambda event: None)
    values = {(f.set, f.audit): f.value for f in again.findings}
    assert values["forget", "Loss"] == pytest.approx(found["forget", "Loss", "after"], abs=1e-5)
    request = read_request(after, forget=folder / "forget.nodes", retain=folder / "retain.nodes")
    attacked = parse("Relearn(items=4, steps=5)")(after, request)
    assert attacked.graph.ids.tolist() == list(range(16, NODES))
    one, other = (model.ask(LogProbabilities(), request.forget[:4]).log_probs.mean() for model in (attacked, after))
    assert one > other + 0.05


def test_by_default_the_losses_of_nodes_become_those_of_unseen_ones_and_not_their_mean(folder: Path):
    network = open_model(folder / "gcn")
    paths = {name: folder / f"{name}.nodes" for name in ("forget", "retain", "holdout")}
    request = read_request(network, **paths)
    network = network.without(request.forget)

    def losses(model: Model, name: str) -> Tensor:
        return -model.ask(LogProbabilities(), request.sets()[name]).log_probs.sort().values

    def distance(model: Model) -> float:
        return float((losses(model, "forget") - losses(model, "holdout")).abs().mean())

    after = {}
    for unseen in (True, False):
        method = choose_method(default_method("graph", unseen), "graph").method
        after[unseen] = method.fit(network, request)(network, request).plain()
    assert distance(after[True]) < 0.7 * distance(network)
    assert distance(after[True]) < 0.7 * distance(after[False])


def test_a_retrained_network_never_had_what_is_left_out_in_its_graph(folder: Path, tmp_path: Path):
    material = Material((folder / "learnt.nodes",), (folder / "forget.nodes",))
    made = train.train(TrainJob(str(folder / "start"), material, tmp_path / "out", method=LEARN), lambda event: None)
    assert made.data.left_out == 8
    assert open_model(tmp_path / "out").graph.ids.tolist() == list(range(16, NODES))


def test_lists_of_nodes_and_edges_are_told_by_their_names():
    assert [kind_of(Path(name)) for name in ("a/b.nodes", "b.EDGES", "c.jsonl")] == ["graphs", "graphs", "text"]


METHODS = (
    "Finetune(objective=Ascent(), adapter=Full(), steps=3, learning_rate=0.05, batch=64, stop=None)",
    "Finetune(objective=NPO(beta=0.5) + RetainNLL(), adapter=Full(), steps=3, learning_rate=0.05, stop=None)",
    "Finetune(objective=D2DGN(), adapter=Full(), steps=3, learning_rate=0.05, stop=None)",
    "Finetune(objective=D2DGNFeatures(), adapter=Full(), steps=3, learning_rate=0.05, stop=None)",
    "Finetune(objective=SCRUB(), steps=3, learning_rate=0.05, stop=None)",
    "SSD(alpha=1.0)",
    "GNNDelete(steps=3)",
)


@pytest.mark.parametrize(
    ("layer", "kind"),
    [("gcn", "GraphForLinkPrediction"), ("gat", "GraphForLinkPrediction"), ("gin", "GraphForNodeClassification")],
)
def test_methods_and_audits_that_know_rows_alone_run_on_every_layer(layer: str, kind: str, tmp_path: Path):
    before = network(layer, kind)
    request = node_request(tmp_path) if kind == "GraphForNodeClassification" else link_request(tmp_path)
    left = before.without(request.forget)
    said = left.ask(LogProbabilities(), request.forget).log_probs
    for method in METHODS:
        after = parse(method)(left, request).plain()
        assert not torch.allclose(after.ask(LogProbabilities(), request.forget).log_probs, said, atol=1e-6), method
        assert torch.equal(after.graph.edges, left.graph.edges)
    for audit_ in ("Accuracy()", "Loss()", "Probability()", "LossMembership()", "MinK()"):
        assert parse(audit_)(after, request)


def test_a_plan_of_a_graph_is_refused_in_a_line():
    with pytest.raises(ModelRefused, match="my-gcn: is a graph network, and plans are of language models and image"):
        reads_images(network().module.config, "my-gcn")
