"""Label-agnostic forgetting: its losses worked by hand, and that no label reaches it."""

import math
from dataclasses import dataclass, replace
from types import SimpleNamespace

import pytest
import torch
from sklearn.datasets import load_digits
from torch import nn
from transformers import (
    LlamaConfig,
    LlamaForCausalLM,
    ResNetConfig,
    ResNetForImageClassification,
    ViTConfig,
    ViTForImageClassification,
)

from expunge.core.model import Network
from expunge.core.question import LogProbabilities, Scores
from expunge.core.request import Request
from expunge.data.images import Picture
from expunge.data.text import Passage
from expunge.errors import DataRefused, ModelRefused, RunFailed, UsageRefused
from expunge.events import Event
from expunge.internals.representation import represent
from expunge.methods.laf import LAF, _Autoencoder
from expunge.models.language import LanguageModel
from expunge.models.vision import ImageClassifier
from expunge.notation.parse import parse

torch.set_num_threads(1)

SHORT = LAF(steps=3, batch=4, autoencoder_steps=10)


def pictures(count: int, seed: int, side: int = 8) -> tuple[Picture, ...]:
    draw = torch.Generator().manual_seed(seed)
    pixels = torch.randn(count, 3, side, side, generator=draw)
    return tuple(Picture(f"{seed}-{k}", pixels[k], k % 4, f"{seed}-{k}") for k in range(count))


REQUEST = Request(forget=pictures(5, 0), retain=pictures(9, 1))


def vit() -> ImageClassifier:
    torch.manual_seed(0)
    shape = dict(hidden_size=16, num_hidden_layers=2, num_attention_heads=2, intermediate_size=24, num_labels=4)
    return ImageClassifier.of(ViTForImageClassification(ViTConfig(**shape, image_size=8, patch_size=4)), None)


def resnet() -> ImageClassifier:
    torch.manual_seed(0)
    config = ResNetConfig(embedding_size=8, hidden_sizes=[8, 16], depths=[1, 1], layer_type="basic", num_labels=4)
    return ImageClassifier.of(ResNetForImageClassification(config), None)


CLASSIFIERS = pytest.mark.parametrize("make", [vit, resnet])


def relabelled(request: Request) -> Request:
    return Request(
        *(tuple(replace(p, label=(3 * p.label + 1) % 4) for p in s) for s in (request.forget, request.retain))
    )


def weights(network: Network) -> dict[str, torch.Tensor]:
    return network.module.state_dict()


# No label


@CLASSIFIERS
def test_poisoned_labels_give_the_same_weights_to_the_bit(make):
    network = make()
    wrong = relabelled(REQUEST)
    assert all(a.label != b.label for a, b in zip(REQUEST.retain, wrong.retain, strict=True))
    one, other = (weights(SHORT(network, request)) for request in (REQUEST, wrong))
    assert all(torch.equal(tensor, other[name]) for name, tensor in one.items())
    assert any(not torch.equal(tensor, one[name]) for name, tensor in weights(network).items())


@CLASSIFIERS
def test_lfssd_too_gives_the_same_weights_to_the_bit_for_pictures_with_poisoned_labels(make):
    network, method = make(), parse("LFSSD(batch=2)")
    one, other = (weights(method(network, request)) for request in (REQUEST, relabelled(REQUEST)))
    assert all(torch.equal(tensor, other[name]) for name, tensor in one.items())
    assert any(not torch.equal(tensor, one[name]) for name, tensor in weights(network).items())


# What is moved


@CLASSIFIERS
def test_the_representation_is_what_the_output_layer_makes_the_scores_of(make):
    network = make()
    with torch.no_grad():
        e = represent(network, REQUEST.retain)
        assert e.shape == (9, 16)
        assert torch.equal(network.module.classifier(e), network.ask(Scores(), REQUEST.retain).logits)
    assert not any(part._forward_hooks for part in network.module.modules())


def test_a_language_models_representations_are_the_states_of_its_answer_tokens():
    torch.manual_seed(0)
    config = LlamaConfig(vocab_size=20, hidden_size=8, intermediate_size=16, num_hidden_layers=1, num_attention_heads=2)
    network = LanguageModel.of(LlamaForCausalLM(config).eval(), None)
    asked = [Passage(f"{k}", tuple(range(k, k + 6)), first, "", "") for k, first in ((1, 2), (7, 4))]
    with torch.no_grad():
        e = represent(network, asked)
        assert e.shape == (4 + 2, 8)  # six tokens each, of which four and two are answers
        assert torch.allclose(network.module.lm_head(e), network.ask(Scores(), asked).logits)


def test_the_output_layer_stays_as_it_is():
    network = vit()
    now, was = weights(SHORT(network, REQUEST)), weights(network)
    assert torch.equal(now["classifier.weight"], was["classifier.weight"])
    assert not torch.equal(now["vit.layernorm.weight"], was["vit.layernorm.weight"])


# The losses


def silent(width: int) -> _Autoencoder:
    """Makes zeros of anything."""
    made = _Autoencoder(width, 3)
    for parameter in made.parameters():
        nn.init.zeros_(parameter)
    return made


def test_how_far_off_its_manifold_a_representation_is():
    # m = |0 - e|^2 = 1 and 9: exp(1 / 2) and exp(9 / 10); on the manifold exp(0) = 1
    off = silent(2).off(torch.tensor([[1.0, 0.0], [0.0, -3.0], [0.0, 0.0]]))
    assert off.tolist() == pytest.approx([math.exp(1 / 2), math.exp(9 / 10), 1.0])


def test_the_loss_of_an_autoencoder():
    made = silent(2)
    states = torch.tensor([[1.0, 0.0], [0.0, -3.0]])
    assert made.loss(states).item() == pytest.approx((1 + 9) / 2)  # mean 0 and variance 1 are the prior: no KL
    made.encoder[-1].bias.data[:] = torch.tensor([2.0, 0.0, 0.0, math.log(4.0), 0.0, 0.0])
    # of the first number: (2^2 + 4 - 1 - log 4) / 2; the decoder still makes zeros of it
    kl = (4 + 4 - 1 - math.log(4)) / 2
    assert made.loss(states).item() == pytest.approx((1 + 9) / 2 + 0.025 * kl)


def test_both_losses_at_the_start():
    events: list[Event] = []
    plan = replace(SHORT, steps=1, batch=9, extract_rate=0.0, align_rate=0.0)
    plan(vit(), REQUEST, events.append)
    # Nothing has moved: every distance is 0, so 9 retained rows pay -log(5 forgotten ones) each.
    assert events[-1].losses["align"] == pytest.approx(-9 * math.log(5), rel=1e-5)
    # 9 rows between 1 and e, less 5 such
    assert 9 - 5 * math.e < events[-1].losses["extract"] < 9 * math.e - 5


@dataclass(frozen=True)
class _Config:
    def to_dict(self) -> dict:
        return {}


class Small(nn.Module):
    """A hidden layer over 64 pixels."""

    def __init__(self) -> None:
        super().__init__()
        self.config = _Config()
        self.body = nn.Sequential(nn.Flatten(), nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 32), nn.ReLU())
        self.classifier = nn.Linear(32, 10)

    def forward(self, pixel_values: torch.Tensor) -> SimpleNamespace:
        return SimpleNamespace(logits=self.classifier(self.body(pixel_values)))


def test_a_class_is_forgotten_and_the_others_are_not():
    data = load_digits()
    pixels = torch.tensor(data.images, dtype=torch.float32)[:, None] / 8 - 1
    all_of = [Picture(f"{k}", pixels[k], int(label), f"{k}") for k, label in enumerate(data.target)]
    train, test = all_of[:1300], all_of[1300:]
    torch.manual_seed(0)
    network = ImageClassifier.of(Small(), None)
    learn = "Finetune(objective=RetainNLL(), adapter=Full(), learning_rate=2e-3, batch=1, retain_batch=64, steps=400, "
    learn = parse(learn + "stop=Stop(level=None, max_retain_increase=None, every=1000), norms=False)")
    unread = Picture("unread", pixels[0], 0, "unread")  # a request has a forget set
    network = learn(network, Request((unread,), tuple(train))).plain()
    request = Request(*(tuple(p for p in train if (p.label == 3) == gone) for gone in (True, False)))
    result = LAF()(network, request)

    def right(model: Network, gone: bool) -> float:
        return float(model.ask(LogProbabilities(), [p for p in test if (p.label == 3) == gone]).right.double().mean())

    assert min(right(network, True), right(network, False)) > 0.8
    assert right(result, True) < 0.3
    assert right(result, False) > right(network, False) - 0.06


# Refusals


class Convolved(nn.Module):
    """Class scores by a convolution, as some small networks have them."""

    def __init__(self) -> None:
        super().__init__()
        self.last = nn.Conv2d(3, 4, 8)

    def forward(self, pixel_values: torch.Tensor) -> SimpleNamespace:
        return SimpleNamespace(logits=self.last(pixel_values).flatten(1))


def test_a_model_without_a_representation_is_refused():
    with pytest.raises(ModelRefused, match="Convolved does not compute its class scores by a linear layer of its own"):
        SHORT(ImageClassifier.of(Convolved(), None), REQUEST)


def test_a_request_without_a_retain_set_is_refused():
    with pytest.raises(DataRefused, match="LAF reads the retain set's representations, and the request has none"):
        SHORT(vit(), Request(REQUEST.forget))


def test_a_broken_model_ends_the_run():
    network = vit()
    network.module.vit.layernorm.weight.data[0] = math.nan
    with pytest.raises(RunFailed, match="step 1 of LAF: the extract loss is NaN"):
        SHORT(network, REQUEST)


@pytest.mark.parametrize(
    ("typed", "said"),
    [
        ("LAF(steps=0)", "`steps` must be at least 1 (got 0)"),
        ("LAF(tau=0.0)", "`tau` must be positive (got 0.0)"),
        ("LAF(extract_rate=-1.0)", "`extract_rate` must be at least 0 and finite (got -1.0)"),
        ("LAF(align_rate=-1.0, latent=0)", "`align_rate` must be at least 0 and finite (got -1.0); `latent` must be"),
    ],
)
def test_settings_that_mean_nothing_are_refused(typed: str, said: str):
    with pytest.raises(UsageRefused) as refused:
        parse(typed)
    assert said in str(refused.value)
