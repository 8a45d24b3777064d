"""A guard, an ensemble and a graph network that only this file knows: unlearned, audited, cached, saved and read back.

None of them needed an edit elsewhere. Their questions are answered by one method each; the rest is what models share.
"""

import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import ClassVar

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from expunge import Finetune, Full, Method, Model, Network, Request, Wrapper, answers, open_model, unlearn
from expunge.adapters.bounded import Bounded
from expunge.audits._kinds import WhiteBoxAudit
from expunge.audits.grad_norm_membership import GradNormMembership
from expunge.core.audit import Audit
from expunge.core.model import Batch
from expunge.core.predictions import Predictions, weights_of
from expunge.core.question import HiddenStates, LogProbabilities, RowStatistics, Scores, Text
from expunge.core.request import Example
from expunge.errors import ModelRefused, UsageRefused
from expunge.events import OnEvent, ignore_event
from expunge.methods.stop import Stop
from expunge.notation.parse import parse, plugins
from expunge.objectives.ascent import Ascent
from expunge.objectives.retain_nll import RetainNLL
from expunge.primitives.composed_files import FILE
from expunge.runtime.answer_store import AnswerStore
from expunge.runtime.cached_model import CachedModel
from tests.families import llama, text_request, vit

FREE = Stop(level=None, max_retain_increase=None, max_growth=None, max_forget_loss=None, every=1000)


# A guard: the right class of each row of a forgotten record is swapped with the least likely one


@dataclass(frozen=True)
class Swaps(Wrapper):
    """Exchanges the scores of the right class and the least likely one, for records that it knows by their digests."""

    inner: Model
    guarded: tuple[str, ...]
    refusal: str = "I cannot say."
    transparent: ClassVar[bool] = False

    @answers(Scores)
    def swap(self, question: Scores, batch: Batch) -> Predictions:
        said = self.inner.ask(question, batch)
        here = torch.tensor([e.record_digest() in self.guarded for e in batch], device=said.example.device)[
            said.example
        ]
        scores = said.logits.clone()
        rows = torch.arange(len(scores), device=scores.device)
        least = scores.argmin(-1)
        right = scores[rows, said.labels]
        scores[rows[here], said.labels[here]] = scores[rows, least][here]
        scores[rows[here], least[here]] = right[here]
        return replace(said, states=scores, head=None)

    @answers(Text)
    def refuse(self, question: Text, batch: Batch) -> list[str]:
        texts = self.inner.ask(question, batch)
        return [self.refusal if e.record_digest() in self.guarded else t for e, t in zip(batch, texts, strict=True)]


@dataclass(frozen=True)
class Guarding(Method):
    """Leaves the weights and guards the forget set's records."""

    def __call__(self, model: Model, request: Request, on_event: OnEvent = ignore_event) -> Model:
        return Swaps(model, tuple(example.record_digest() for example in request.forget))


# An ensemble: the mean of two networks' log-probabilities


@dataclass(frozen=True)
class Mean(Model):
    """The mean of the members' log-probabilities, normalised again."""

    members: tuple[Model, ...]

    @answers(Scores)
    def mean(self, question: Scores, batch: Batch) -> Predictions:
        said = [member.ask(question, batch) for member in self.members]
        return replace(said[0], states=torch.stack([each.log_probs() for each in said]).mean(0), head=None)

    def batches(self, examples: Batch) -> Iterator[list[int]]:
        return self.members[0].batches(examples)


@dataclass(frozen=True)
class EachMember(Method):
    """Any method, on every member."""

    method: Method

    def __call__(self, model: Model, request: Request, on_event: OnEvent = ignore_event) -> Model:
        assert isinstance(model, Mean)
        return Mean(tuple(self.method(member, request, on_event).plain() for member in model.members))


# A graph network: class scores of nodes by two propagations over a fixed adjacency


class Propagates(nn.Module):
    """softmax(S relu(S X A) B), S the normalised adjacency with loops (Kipf and Welling, 2017)."""

    def __init__(self, features: Tensor, edges: Tensor, width: int, classes: int) -> None:
        super().__init__()
        loops = edges + torch.eye(len(edges))
        degree = loops.sum(1).rsqrt()
        self.register_buffer("spread", degree[:, None] * loops * degree)
        self.register_buffer("features", features)
        self.first, self.second = nn.Linear(features.shape[1], width), nn.Linear(width, classes)

    def forward(self) -> Tensor:
        return self.spread @ self.second(torch.relu(self.spread @ self.first(self.features)))


@dataclass(frozen=True)
class Node:
    """A node of the graph with its class."""

    id: str
    number: int
    label: int
    weight: float = 1.0
    rows: ClassVar[int] = 1
    size: ClassVar[int] = 1
    alternatives: ClassVar[tuple[Example, ...]] = ()

    def input_digest(self) -> bytes:
        return f"{self.number} {self.label}".encode()

    def record_digest(self) -> str:
        return f"{self.number} {self.label}"

    fact_digest = record_digest


@dataclass(frozen=True)
class GraphNetwork(Network):
    """Thirty lines: how nodes are asked, what they depend on, and how the network is written and read."""

    @answers(Scores)
    def scores(self, question: Scores, batch: Batch) -> Predictions:
        nodes = torch.tensor([node.number for node in batch])
        labels = torch.tensor([node.label for node in batch])
        owner = torch.arange(len(batch))
        return Predictions(labels, owner, len(batch), None, self.module()[nodes], weights=weights_of(batch))

    def batches(self, examples: Batch) -> Iterator[list[int]]:
        yield list(range(len(examples)))

    def settings(self) -> str:
        return "two propagations"

    def save(self, folder: Path) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        save_file(self.module.state_dict(), folder / "graph.safetensors")
        (folder / FILE).write_text(json.dumps({"kind": f"{__name__}:GraphNetwork"}))

    @staticmethod
    def load(folder: Path, open_part: Callable[[Path], Model]) -> "GraphNetwork":
        state = load_file(folder / "graph.safetensors")
        width, classes = len(state["first.bias"]), len(state["second.bias"])
        module = Propagates(
            state["features"], torch.zeros(len(state["features"]), len(state["features"])), width, classes
        )
        module.load_state_dict(state)
        return GraphNetwork(module.eval().requires_grad_(False))


def graph() -> tuple[GraphNetwork, Request]:
    """Two clusters of nodes, each of its own class."""
    draw = torch.Generator().manual_seed(0)
    torch.manual_seed(0)
    labels = [k % 2 for k in range(40)]
    same = torch.tensor([[float(a == b) for b in labels] for a in labels])
    edges = (torch.rand(40, 40, generator=draw) < 0.1 + 0.3 * same).float().triu(1)
    features = torch.randn(40, 6, generator=draw) + torch.tensor(labels)[:, None]
    nodes = tuple(Node(f"n{k}", k, label) for k, label in enumerate(labels))
    network = GraphNetwork(Propagates(features, edges + edges.T, 8, 2).eval().requires_grad_(False))
    request = Request(nodes[:8], nodes[16:], nodes[8:16])
    learn = Finetune(
        RetainNLL(), Full(), learning_rate=0.05, steps=40, batch=1, retain_batch=32, stop=FREE, norms=False
    )
    everything = Request((replace(nodes[0], id="again", number=0, label=1 - labels[0]),), nodes)
    return learn(network, everything).plain(), request


ASCEND = Finetune(Ascent(), Full(), learning_rate=0.05, steps=30, batch=8, stop=FREE)


def guarded() -> tuple[Model, Request, Method]:
    return llama(), text_request(), Guarding()


def ensemble() -> tuple[Model, Request, Method]:
    request = text_request()
    other = llama()
    with torch.no_grad():
        other.module.lm_head.weight += 0.1
    method = Finetune(Ascent(), Bounded(rank=2), learning_rate=1e-2, steps=3, batch=6, stop=FREE)
    return Mean((llama(), other)), request, EachMember(method)


def of_a_graph() -> tuple[Model, Request, Method]:
    return *graph(), ASCEND


STRANGERS = {"guard": guarded, "ensemble": ensemble, "graph": of_a_graph}
STRANGER = pytest.mark.parametrize("name", STRANGERS)


LOOK_INSIDE = (WhiteBoxAudit, GradNormMembership)


def black_box() -> list[Audit]:
    made = [parse(plugin.name) for plugin in plugins() if plugin.folder == "audits"]
    return [audit for audit in made if isinstance(audit, Audit) and not isinstance(audit, LOOK_INSIDE)]


def fitting(model: Model) -> list[Audit]:
    """The black-box audits whose questions the model answers."""
    return [audit for audit in black_box() if all(model.answers_to(kind) for kind in audit.reads)]


@STRANGER
def test_it_is_unlearned_audited_and_reported(name: str, tmp_path: Path):
    model, request, method = STRANGERS[name]()
    report = unlearn(model, request, method, audits=fitting(method(model, request).plain()))
    loss = {f.model: f.value for f in report.findings if f.audit == "Loss" and f.set == "forget"}
    assert loss["after"] > loss["before"] + 0.1
    assert {f.audit for f in report.findings if f.model == "after"} >= {"Loss", "Probability", "LossMembership", "MinK"}
    report.save(tmp_path / "report")
    read = open_model(tmp_path / "report" / "model")
    assert type(read) is type(report.model)
    assert read.fingerprint() == report.model.fingerprint() == report.result


@STRANGER
def test_every_black_box_audit_reads_it_through_a_cache_as_it_does_directly(name: str):
    model, request, method = STRANGERS[name]()
    changed = method(model, request)
    cached = CachedModel(changed)
    for audit in fitting(changed):
        for one, other in zip(audit(cached, request), audit(changed, request), strict=True):
            assert (one.audit, one.set, one.value) == (
                other.audit,
                other.set,
                pytest.approx(other.value, rel=1e-5, abs=1e-6),
            )
    assert cached.replies


@STRANGER
def test_what_it_said_is_found_again_by_a_later_run_and_never_by_another_model(name: str, tmp_path: Path):
    model, request, method = STRANGERS[name]()
    changed, store = method(model, request).plain(), AnswerStore(tmp_path / "answers.sqlite")
    first, again, other = (CachedModel(each, store) for each in (changed, changed, model))
    expected = first.ask(LogProbabilities(), request.forget)
    assert torch.equal(again.ask(LogProbabilities(), request.forget).log_probs, expected.log_probs)
    assert again.recalled == len(request.forget)
    other.ask(LogProbabilities(), request.forget)
    assert other.recalled == 0


def test_a_guard_with_other_settings_is_another_model(tmp_path: Path):
    request, store = text_request(), AnswerStore(tmp_path / "answers.sqlite")
    network = llama()
    guard = Guarding()(network, request)
    assert isinstance(guard, Swaps)
    assert guard.fingerprint() != network.fingerprint()
    for refusal in ("I cannot say.", "Ask somebody else."):
        cached = CachedModel(replace(guard, refusal=refusal), store)
        assert cached.ask(Text(3), request.forget) == [refusal] * len(request.forget)
        assert cached.recalled == 0


def test_what_is_found_again_carries_the_weights_of_its_examples(tmp_path: Path):
    network, store = llama(), AnswerStore(tmp_path / "answers.sqlite")
    examples = [replace(e, weight=float(k + 1)) for k, e in enumerate(text_request().forget)]
    first, again = (CachedModel(network, store).ask(LogProbabilities(), examples) for _ in range(2))
    expected = weights_of(examples)
    assert expected is not None
    for reply in (first, again):
        assert reply.weights is not None
        assert torch.equal(reply.weights.cpu(), expected.cpu())


@STRANGER
def test_it_is_saved_and_read_back_with_the_same_answers(name: str, tmp_path: Path):
    model, request, method = STRANGERS[name]()
    changed = method(model, request).plain()
    changed.save(tmp_path / "model")
    read = open_model(tmp_path / "model")
    assert read.settings() == changed.settings()
    one, other = (each.ask(LogProbabilities(), request.forget).log_probs for each in (read, changed))
    assert torch.equal(one, other)


# The guard, which is not transparent


def test_a_guard_swaps_the_forgotten_answers_and_no_others():
    network, request = llama(), text_request()
    guard = Guarding()(network, request)
    for question in (LogProbabilities(), RowStatistics()):
        was, now = network.ask(question, request.retain), guard.ask(question, request.retain)
        assert torch.allclose(was.log_probs, now.log_probs, atol=1e-6)
    assert not guard.ask(LogProbabilities(), request.forget).right.any()
    assert (guard.ask(RowStatistics(), request.forget).rank >= 1).all()
    assert guard.ask(Text(3), request.forget) == ["I cannot say."] * 6


def test_nothing_gets_by_a_guard_that_it_does_not_answer_itself():
    guard, request = Guarding()(llama(), text_request()), text_request()
    assert not guard.answers_to(HiddenStates)
    with pytest.raises(ModelRefused, match="Swaps cannot be asked for HiddenStates. It answers: Scores, Text"):
        guard.ask(HiddenStates(0), request.forget)
    with pytest.raises(UsageRefused, match="LinearProbe reads weights or hidden states, and Swaps gives answers only"):
        parse("LinearProbe()")(CachedModel(guard), request)


@pytest.mark.parametrize("text", ["Quantize()", "Relearn(items=2)", "SSD()", "Finetune()"])
def test_what_works_on_weights_refuses_what_has_none_in_one_line(text: str):
    request = text_request()
    for model in (Guarding()(llama(), request), Mean((llama(), llama()))):
        with pytest.raises(UsageRefused) as refused:
            parse(text)(model, request)
        name = text.partition("(")[0]
        assert f"{name} reads weights or hidden states, and {type(model).__name__} gives answers only." in str(
            refused.value
        )


def test_a_wrapper_that_is_transparent_is_passed_through():
    network, request = vit(), None
    assert CachedModel(CachedModel(network)).plain() is network
    assert CachedModel(network).fingerprint() == network.fingerprint()
    assert CachedModel(network).answers_to(HiddenStates)
    assert request is None


# Folders


def test_a_folder_names_no_module_to_be_imported(tmp_path: Path):
    (tmp_path / FILE).write_text(json.dumps({"kind": "antigravity:Model", "settings": {}}))
    with pytest.raises(ModelRefused, match="'antigravity:Model', which is not imported"):
        open_model(tmp_path)


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"kind": 3}', '{"kind": "a:b", "settings": 4}', "[" * 5000])
def test_a_folder_that_describes_no_model_is_refused(tmp_path: Path, text: str):
    (tmp_path / FILE).write_text(text)
    with pytest.raises(ModelRefused):
        open_model(tmp_path)


def test_a_guard_whose_network_is_gone_is_refused(tmp_path: Path):
    Guarding()(llama(), text_request()).save(tmp_path)
    (tmp_path / "inner").rename(tmp_path / "elsewhere")
    with pytest.raises(ModelRefused, match="cannot be built from the files in it"):
        open_model(tmp_path)
