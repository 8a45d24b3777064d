"""Datamodel matching: the loss by hand, and where its minimum is."""

import copy
from dataclasses import dataclass

import pytest
import torch

from expunge import Finetune, Full, Request, Stop
from expunge.core.method import Method
from expunge.core.model import Model
from expunge.core.question import Scores
from expunge.core.view import View
from expunge.errors import DataRefused, UsageRefused
from expunge.events import OnEvent, ignore_event
from expunge.methods.datamodel_matching import DatamodelMatching, _Matched
from expunge.methods.newton import Newton
from tests.families import family_of
from tests.methods.test_newton import L2, REQUEST, RETAIN, network


@dataclass(frozen=True)
class Given(Method):
    """An oracle that is there already."""

    model: Model

    def __call__(self, model: Model, request: Request, on_event: OnEvent = ignore_event) -> Model:
        return self.model


def scores(model: Model, examples) -> torch.Tensor:
    """The class scores of all rows."""
    with torch.no_grad():
        return model.ask(Scores(), examples).logits


@pytest.mark.parametrize("family", ["llama", "vit", "resnet"])
def test_the_loss_is_the_squared_distance_of_the_scores_from_the_oracles(family: str):
    now, request = family_of(family)
    torch.manual_seed(3)
    target = now.fork(copy.deepcopy(now.module))
    with torch.no_grad():
        for parameter in target.module.parameters():
            parameter.add_(0.05 * torch.randn_like(parameter))
    sets = {"forget": request.forget, "retain": request.retain}
    value = _Matched(target, 0.7)(View(now, sets), View(now, sets, gradients=False)).item()
    far = {
        name: (scores(now, batch) - scores(target, batch)).square().sum(-1).mean().item()
        for name, batch in sets.items()
    }
    assert value == pytest.approx(0.3 * far["forget"] + 0.7 * far["retain"], rel=1e-4)
    assert value > 0


def test_trained_long_enough_the_network_says_what_the_oracle_says():
    start = network()
    oracle = Newton(l2=L2, steps=12)(start, REQUEST)
    learn = Finetune(
        adapter=Full(),
        learning_rate=3e-2,
        steps=150,
        batch=20,
        retain_batch=90,
        schedule="linear",
        stop=Stop(level=None, max_retain_increase=None, every=1000),
        norms=False,
    )
    result = DatamodelMatching(oracle=Given(oracle), learn=learn)(start, REQUEST)
    for examples in (RETAIN, REQUEST.forget):
        was, now = ((scores(model, examples) - scores(oracle, examples)).norm() for model in (start, result))
        assert now < 0.2 * was


def test_what_cannot_be_is_refused():
    with pytest.raises(DataRefused, match="matches the retain set too"):
        DatamodelMatching()(network(), Request(REQUEST.forget))
    with pytest.raises(UsageRefused, match="`retain` of DatamodelMatching"):
        DatamodelMatching(retain=1.0)
