"""Newton's step of the last layer: beside torch's own Hessian, and beside scikit-learn's head trained anew."""

from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch
from sklearn.linear_model import LogisticRegression
from torch import nn
from torch.nn.functional import cross_entropy
from transformers import PretrainedConfig, PreTrainedModel

from expunge import Request
from expunge.data.images import Picture
from expunge.errors import DataRefused, UsageRefused
from expunge.events import Note
from expunge.methods.newton import Newton
from expunge.models.vision import ImageClassifier

WIDTH, CLASSES, L2 = 6, 4, 0.05


class Shape(PretrainedConfig):
    model_type = "expunge_linear_probe"


class Probe(PreTrainedModel):
    """A linear layer on fixed features."""

    config_class = Shape

    def __init__(self, config: PretrainedConfig) -> None:
        super().__init__(config)
        self.body = nn.Linear(WIDTH, WIDTH)
        self.classifier = nn.Linear(WIDTH, CLASSES)

    def forward(self, pixel_values: torch.Tensor) -> SimpleNamespace:
        return SimpleNamespace(logits=self.classifier(self.body(pixel_values.flatten(1)).tanh()))


def drawn(count: int, seed: int) -> tuple[Picture, ...]:
    """Pictures of overlapping classes."""
    draw = torch.Generator().manual_seed(seed)
    labels = torch.randint(0, CLASSES, (count,), generator=draw)
    centres = torch.randn(CLASSES, WIDTH, generator=torch.Generator().manual_seed(9))
    x = centres[labels] + torch.randn(count, WIDTH, generator=draw)
    return tuple(Picture(f"{seed}-{k}", x[k].view(1, 1, WIDTH), int(labels[k]), f"{seed}-{k}") for k in range(count))


RETAIN, FORGET = drawn(90, 1), drawn(20, 2)
REQUEST = Request(FORGET, RETAIN)


def network() -> ImageClassifier:
    torch.manual_seed(0)
    return ImageClassifier.of(Probe(Shape(num_labels=CLASSES, num_channels=1)).eval().double(), None)


def features(pictures: tuple[Picture, ...]) -> tuple[torch.Tensor, torch.Tensor]:
    module, x = network().module, torch.stack([p.pixels.flatten() for p in pictures]).double()
    return module.body(x).tanh().detach(), torch.tensor([p.label for p in pictures])


def head(result) -> torch.Tensor:
    layer = result.module.classifier
    return torch.cat([layer.weight, layer.bias[:, None]], 1).detach().double()


def trained_by_sklearn(pictures: tuple[Picture, ...]) -> torch.Tensor:
    """scikit-learn minimises C * sum of the losses + 1/2 |W|^2; classes are told apart by differences alone."""
    x, y = features(pictures)
    model = LogisticRegression(C=1 / (L2 * len(y)), tol=1e-12, max_iter=10_000).fit(x.numpy(), y.numpy())
    return torch.cat([torch.tensor(model.coef_), torch.tensor(model.intercept_)[:, None]], 1)


def probabilities(weights: torch.Tensor, pictures: tuple[Picture, ...]) -> torch.Tensor:
    x, _ = features(pictures)
    return (x @ weights[:, :-1].T + weights[:, -1]).softmax(1)


def test_one_step_is_that_of_torchs_own_hessian():
    x, y = features(RETAIN)
    ones = torch.cat([x, torch.ones(len(x), 1, dtype=x.dtype)], 1)

    def loss(flat: torch.Tensor) -> torch.Tensor:
        w = flat.view(CLASSES, WIDTH + 1)
        return cross_entropy(ones @ w.T, y) + L2 / 2 * w[:, :-1].square().sum()

    flat = head(network()).flatten()
    bent = torch.autograd.functional.hessian(loss, flat)
    slope = torch.autograd.functional.jacobian(loss, flat)
    expected = (flat - torch.linalg.lstsq(bent, slope, driver="gelsd").solution).view(CLASSES, WIDTH + 1)
    got = head(Newton(l2=L2)(network(), REQUEST))
    assert loss(expected.flatten()) < loss(flat)  # otherwise the step would have been halved
    torch.testing.assert_close(got, expected, rtol=0, atol=1e-6)


def test_its_steps_end_where_the_head_trained_anew_is():
    got = probabilities(head(Newton(l2=L2, steps=12)(network(), REQUEST)), RETAIN)
    torch.testing.assert_close(got, probabilities(trained_by_sklearn(RETAIN), RETAIN), rtol=0, atol=1e-5)


def test_one_step_from_the_trained_head_takes_it_most_of_the_way_to_the_one_trained_anew():
    start, anew = network(), probabilities(trained_by_sklearn(RETAIN), FORGET)
    both = Newton(l2=L2, steps=12)(start, Request(drawn(1, 3), RETAIN + FORGET))
    once = probabilities(head(Newton(l2=L2)(both, REQUEST)), FORGET)
    was = probabilities(head(both), FORGET)
    assert (once - anew).norm() < (was - anew).norm() / 20


def test_the_layers_below_are_the_same_and_the_forget_set_has_no_say():
    start, notes = network(), []
    one = Newton(l2=L2)(start, REQUEST, notes.append)
    other = Newton(l2=L2)(start, Request(FORGET[:3], RETAIN))
    assert torch.equal(one.module.body.weight, start.module.body.weight)
    assert torch.equal(head(one), head(other))
    assert not torch.equal(head(one), head(start))
    assert any("slope of the last layer's loss" in note.what for note in notes if isinstance(note, Note))


def test_a_record_of_weight_two_counts_as_two():
    twice = (*RETAIN[:10], *(replace(p, id=f"{p.id}, again") for p in RETAIN[:5]))
    weighed = (*(replace(p, weight=2.0) for p in RETAIN[:5]), *RETAIN[5:10])
    one, other = (head(Newton(l2=L2)(network(), Request(FORGET, each))) for each in (twice, weighed))
    torch.testing.assert_close(one, other, rtol=0, atol=1e-8)
    assert not torch.allclose(other, head(Newton(l2=L2)(network(), Request(FORGET, RETAIN[:10]))), atol=1e-3)


def test_what_cannot_be_is_refused():
    with pytest.raises(DataRefused, match="Newton goes by the retain set"):
        Newton()(network(), Request(FORGET))
    for settings in ({"l2": 0.0}, {"l2": float("inf")}, {"steps": 0}):
        with pytest.raises(UsageRefused, match="of Newton must be"):
            Newton(**settings)
