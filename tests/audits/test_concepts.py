"""Concepts: directions that were planted are found, attributions add up, and one example's state is its own affair."""

import math
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import torch
from sklearn.svm import LinearSVC
from torch import nn
from transformers import (
    LlamaConfig,
    LlamaForCausalLM,
    ResNetConfig,
    ResNetForImageClassification,
    ViTConfig,
    ViTForImageClassification,
)

from expunge.audits._concept_vectors import cav, random_cavs, remaining
from expunge.audits.concept_inference import ConceptInference
from expunge.audits.tcav import TCAV
from expunge.core.model import Network, answers
from expunge.core.predictions import Predictions
from expunge.core.question import HiddenStates, Scores
from expunge.core.request import Request
from expunge.data.images import Picture
from expunge.data.text import Passage
from expunge.errors import EnvironmentRefused, UsageRefused
from expunge.internals.states import Inside, log_odds
from expunge.models.language import LanguageModel
from expunge.models.vision import ImageClassifier

torch.set_num_threads(1)


@dataclass(frozen=True)
class Point:
    """A state and a class."""

    id: str
    x: tuple[float, ...]
    label: int = 0
    rows: int = 1
    size: int = 1
    alternatives: tuple = ()
    weight: float = 1.0

    def record_digest(self) -> str:
        return self.id

    fact_digest = record_digest


class Layers(nn.Module):
    """The identity, as a layer that can be named, and two class scores of what it says."""

    def __init__(self, *rows: tuple[float, ...]) -> None:
        super().__init__()
        self.body = nn.Identity()
        self.scores = nn.Linear(len(rows[0]), len(rows), bias=False)
        self.scores.weight.data = torch.tensor(rows)


@dataclass(frozen=True)
class Linear(Network):
    @answers(Scores)
    def scores(self, question: Scores, batch: list[Point]) -> Predictions:
        x = self.module.body(torch.tensor([point.x for point in batch]))
        labels = torch.tensor([point.label for point in batch])
        return Predictions(labels, torch.arange(len(batch)), len(batch), None, self.module.scores(x))

    def batches(self, examples: list[Point]) -> Iterator[list[int]]:
        for start in range(0, len(examples), 7):
            yield list(range(min(start + 7, len(examples)) - 1, start - 1, -1))  # backwards: order must be kept

    def save(self, folder: Path) -> None:
        raise NotImplementedError

    def settings(self) -> str:
        return ""


def cloud(name: str, count: int, middle: tuple[float, ...], spread: float = 1.0, label: int = 0) -> tuple[Point, ...]:
    draw = np.random.default_rng(len(name) + ord(name[0]))
    return tuple(
        Point(f"{name}{k}", tuple((np.array(middle) + spread * draw.normal(size=len(middle))).tolist()), label)
        for k in range(count)
    )


# Two classes, whose scores differ by 2 along axis 0 and by -1 along axis 1; axis 2 says nothing.
NETWORK = Linear(Layers((2.0, -1.0, 0.0), (0.0, 0.0, 0.0)))
FORGET = cloud("f", 20, (1.0, 0.0, 0.0))
RETAIN = cloud("r", 150, (0.0, 0.0, 0.0), label=1)
PROBES = {
    "first": cloud("a", 100, (6.0, 0.0, 0.0)),
    "second": cloud("b", 100, (0.0, 6.0, 0.0)),
    "third": cloud("c", 100, (0.0, 0.0, 6.0)),
}
REQUEST = Request(FORGET, RETAIN, probes=PROBES)


# Directions


@pytest.mark.parametrize("width", [8, 64, 400])
def test_a_planted_direction_is_found(width: int):
    draw = np.random.default_rng(width)
    planted = draw.normal(size=width)
    planted /= np.linalg.norm(planted)
    noise = 0.1 if width == 400 else 0.3  # of 200 examples and 400 directions the mean's own noise is in the way
    others, shown = (noise * draw.normal(size=(100, width)) for _ in range(2))
    found, accuracy = cav(shown + 3 * planted, others, draw)
    assert math.isclose(np.linalg.norm(found), 1)
    assert found @ planted > 0.95
    assert accuracy == 1.0


def test_a_direction_in_the_span_of_the_examples_is_the_one_of_the_whole_space():
    draw = np.random.default_rng(0)
    shown, others = draw.normal(size=(20, 90)) + 0.5, draw.normal(size=(20, 90))
    both = np.concatenate([shown, others])
    whole, spanned = (
        LinearSVC(C=0.1, random_state=0, tol=1e-8, max_iter=100000).fit(states, np.repeat([1, 0], 20)).coef_[0]
        for states in (both, both @ np.linalg.qr(both.T)[0])
    )
    basis = np.linalg.qr(both.T)[0]
    assert np.allclose(basis @ spanned, whole, atol=1e-5)


def test_a_direction_between_random_sets_means_nothing():
    states = np.random.default_rng(0).normal(size=(200, 50))
    directions = random_cavs(states, 100, 10, np.random.default_rng(1))
    assert max(abs(d[0]) for d in directions) < 0.5  # sqrt(1 / 50) = 0.14 is the typical entry of a unit vector
    assert not np.allclose(directions[0], directions[1])


def test_what_remains_lies_in_the_middle_along_each_direction_taken_out_and_nowhere_else():
    states, middle = np.array([[3.0, 4.0, 5.0]]), np.array([1.0, 1.0, 1.0])
    assert np.allclose(remaining(states, middle, [np.array([1.0, 0, 0])]), [[1, 4, 5]])
    slanted = np.array([1.0, 1.0, 0]) / math.sqrt(2)  # with the first axis it spans the second
    assert np.allclose(remaining(states, middle, [np.array([1.0, 0, 0]), slanted]), [[1, 1, 5]])
    assert remaining(states, middle, []) is states


# Attributions


def test_log_odds_worked():
    value = log_odds(torch.tensor([1]), torch.tensor([[1.0, 3.0, 2.0]]))
    assert math.isclose(value.item(), 3 - math.log(math.e + math.e**2), rel_tol=1e-6)


def test_nats_along_concepts_worked_on_two_classes():
    # The log-odds are 2 x0 - x1, linear, so the gradient is (2, -1, 0) everywhere.
    settings = dict(concepts=("first", "second", "third"), layer="body")
    audit = ConceptInference(**settings)
    found = {f.set: f for f in audit(NETWORK, REQUEST)}
    way = np.array([p.x for p in FORGET]) - np.mean([p.x for p in RETAIN], axis=0)
    assert np.allclose(found["whole"].scores, 2 * way[:, 0] - way[:, 1], atol=1e-5)
    for name, direction in audit.directions(NETWORK, REQUEST).items():
        expected = (way @ direction) * (2 * direction[0] - direction[1])
        assert np.allclose(found[f"concept {name}"].scores, expected, atol=1e-5)
    first, second, third = (found[f"concept {name}"].value for name in settings["concepts"])
    assert first > 1.2  # most of 2 * 1, for the forget examples lie 1 further along axis 0
    assert abs(second) < 0.5
    assert abs(third) < 0.5


def vit() -> ImageClassifier:
    torch.manual_seed(0)
    shape = dict(hidden_size=16, num_hidden_layers=2, num_attention_heads=2, intermediate_size=24, num_labels=4)
    module = ViTForImageClassification(ViTConfig(**shape, image_size=8, patch_size=4)).double()
    return ImageClassifier.of(strong(module), None)


def resnet() -> ImageClassifier:
    torch.manual_seed(0)
    config = ResNetConfig(embedding_size=8, hidden_sizes=[8, 16], depths=[1, 1], layer_type="basic", num_labels=4)
    return ImageClassifier.of(strong(ResNetForImageClassification(config).double()), None)


def llama() -> LanguageModel:
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=30, hidden_size=16, intermediate_size=24, num_hidden_layers=2, num_attention_heads=2, eos_token_id=0
    )
    return LanguageModel.of(strong(LlamaForCausalLM(config).double().eval()), None)


def strong(module: nn.Module) -> nn.Module:
    for parameter in module.parameters():
        if parameter.dim() > 1:
            nn.init.normal_(parameter, std=0.2)
    return module.eval()


def pictures(count: int, seed: int) -> tuple[Picture, ...]:
    draw = torch.Generator().manual_seed(seed)
    pixels = torch.randn(count, 3, 8, 8, generator=draw)
    return tuple(Picture(f"{seed}-{k}", pixels[k], k % 4, f"{seed}-{k}") for k in range(count))


def texts(count: int, seed: int) -> tuple[Passage, ...]:
    """Answers of unequal length to prompts of which some begin alike, and two are one another's beginning."""
    draw = torch.Generator().manual_seed(seed)
    made = []
    for k in range(count):
        tokens = [1, 2, 3 + k % 2, *torch.randint(5, 30, (2 + k % 3,), generator=draw).tolist()]
        made.append(Passage(f"{seed}-{k}", tuple(tokens), 2 + k % 2, "", f"{seed}-{k}"))
    return tuple(made)


PLACES = pytest.mark.parametrize(
    ("network", "layer", "examples"),
    [
        (vit(), 0, pictures),
        (vit(), 1, pictures),
        (resnet(), "resnet.pooler", pictures),
        (llama(), 0, texts),
        (llama(), 0.75, texts),
    ],
    ids=["vit, first block", "vit, last block", "resnet, by name", "llama, first block", "llama, three quarters up"],
)


@PLACES
def test_attributions_add_up_to_the_rise_of_the_log_odds(network, layer, examples):
    inside = Inside.of(network, layer)
    asked = examples(5, 1)
    states = inside.states(asked)
    baseline = inside.states(examples(6, 2)).mean(0)
    rise = inside.odds(asked, states) - inside.odds(asked, baseline.expand_as(states))
    assert rise.abs().max() > 0.01
    total = ((states - baseline) * inside.mean_slopes(asked, baseline, 32)).sum(1)
    assert torch.allclose(total, rise, atol=1e-4)


@PLACES
def test_a_state_put_back_changes_nothing_and_another_only_its_own_example(network, layer, examples):
    inside = Inside.of(network, layer)
    asked = examples(5, 1)
    states = inside.states(asked)
    with torch.inference_mode():
        said = network.ask(Scores(), asked)
        plain = said.mean(said.each_row(log_odds))
    odds = inside.odds(asked, states)
    assert torch.allclose(odds, plain, atol=1e-5)
    other = states.clone()
    other[2, 0] += 1.0
    changed = inside.odds(asked, other)
    assert torch.allclose(changed[[0, 1, 3, 4]], odds[[0, 1, 3, 4]], atol=1e-9)
    assert abs(changed[2] - odds[2]) > 1e-3


@PLACES
def test_slopes_are_those_of_small_steps(network, layer, examples):
    inside = Inside.of(network, layer)
    asked = examples(4, 1)
    states, slopes = inside.states(asked), inside.slopes(asked)
    step = torch.randn(states.shape, generator=torch.Generator().manual_seed(0), dtype=states.dtype) * 1e-3
    rise = inside.odds(asked, states + step) - inside.odds(asked, states - step)
    assert torch.allclose(rise, 2 * (slopes * step).sum(1), atol=1e-6)


def test_the_states_of_a_block_are_those_that_the_network_itself_tells():
    network, asked = vit(), pictures(5, 1)
    assert torch.equal(Inside.of(network, 1).states(asked), network.ask(HiddenStates(1), asked).states)
    network, asked = llama(), texts(5, 1)
    felt = network.ask(HiddenStates(0), asked)
    first = felt.counts().cumsum(0) - felt.counts()
    assert torch.allclose(Inside.of(network, 0).states(asked), felt.states[first], atol=1e-6)


def test_attributions_are_those_of_captums_own_layer_version():
    from captum.attr import LayerIntegratedGradients

    network, asked = resnet(), pictures(3, 1)
    (blank,) = pictures(1, 2)
    module, inside = network.module, Inside.of(network, "resnet.pooler")
    labels = torch.tensor([p.label for p in asked])
    theirs = LayerIntegratedGradients(
        lambda x: log_odds(labels.repeat(len(x) // 3), module(pixel_values=x).logits), module.resnet.pooler
    ).attribute(torch.stack([p.pixels for p in asked]).double(), blank.pixels[None].double(), n_steps=32)
    baseline = inside.states((blank,))[0]
    ours = (inside.states(asked) - baseline) * inside.mean_slopes(asked, baseline, 32)
    assert torch.allclose(ours, theirs.detach().flatten(1), atol=1e-6)


def test_without_captum_one_line_names_the_extra(monkeypatch):
    monkeypatch.setitem(sys.modules, "captum.attr", None)
    with pytest.raises(EnvironmentRefused, match=r"pip install 'expunge\[concepts\]'"):
        ConceptInference(concepts=("first",), layer="body")(NETWORK, REQUEST)


# TCAV


def test_a_class_that_rises_with_a_concept_is_told_from_one_that_falls_and_from_chance():
    found = {f.set: f.value for f in TCAV(concepts=("first", "second", "third"), layer="body")(NETWORK, REQUEST)}
    assert found["concept first"] == 1.0
    assert found["concept second"] == 0.0
    assert 0.2 < found["random"] < 0.8
    assert found["concept first, p"] < 0.05 / 3
    assert found["concept second, p"] < 0.05 / 3


def test_everything_is_no_concept():
    found = {f.set: f.value for f in TCAV(concepts=("retain",), layer="body", samples=60)(NETWORK, REQUEST)}
    assert found["concept retain, p"] > 0.05


def test_the_forget_set_stands_for_the_class_where_no_concept_is_named():
    sets = {f.set for f in TCAV(layer="body", draws=3)(NETWORK, REQUEST)}
    assert sets == {"random", "concept forget", "concept forget, p"}
    assert TCAV(layer="body")(NETWORK, Request(FORGET)) == ()  # nothing to tell it from
    assert ConceptInference(layer="body")(NETWORK, Request(FORGET)) == ()


@pytest.mark.parametrize("kind", [TCAV, ConceptInference])
def test_layers_and_sets_that_are_not_there_are_refused_in_one_line(kind: type):
    with pytest.raises(UsageRefused, match="no layer 'head' in Layers. Give one of its modules, such as 'scores'"):
        kind(layer="head")(NETWORK, REQUEST)
    with pytest.raises(UsageRefused, match="no set 'fourth'. Sets: forget, retain, first, second, third."):
        kind(concepts=("fourth",), layer="body")(NETWORK, REQUEST)
    with pytest.raises(UsageRefused, match="from 0 to 1, or a share of the depth below 1.0. Got 2"):
        kind(layer=2)(vit(), Request(pictures(3, 1), pictures(3, 2)))
    with pytest.raises(UsageRefused, match="at least 2"):
        kind(draws=1)
    with pytest.raises(UsageRefused, match="does not give one state for each example. Give a block number"):
        kind(layer="model.embed_tokens")(llama(), Request(texts(3, 1), texts(3, 2)))
