"""Laws that every method, edit and attack keeps on every family: the network is left as found, and any follows any."""

import dataclasses

import pytest
import torch

from expunge.core.method import Method
from expunge.core.model import network_of
from expunge.notation.parse import Plugin, parse
from tests.families import ANSWERING, FAMILY, METHOD, assert_as_found, family_of, logits, moved, state

FITTING = {
    "Relearn": "Relearn(items=2, steps=2)",  # six examples, of which some must be left
    "Negate": "Negate(learn=Finetune(objective=-1.0 * Ascent(), adapter=Full(), learning_rate=1e-3, steps=3, "
    "stop=Stop(level=None, max_retain_increase=None)))",
    "DatamodelMatching": "DatamodelMatching(learn=Finetune(adapter=Full(), learning_rate=1e-3, steps=3, "
    "stop=Stop(level=None, max_retain_increase=None)))",
    "DatamodelDirect": "DatamodelDirect(side=4)",
    "Finetune": "Finetune(adapter=Full(), steps=3)",
    "OwnWords": "OwnWords(learn=Finetune(adapter=Full(), steps=3))",
    "LAF": "LAF(steps=3, autoencoder_steps=20)",
    "Poison": "Poison(learn=Finetune(objective=IdkNLL() + RetainNLL(), adapter=LastLayer(), learning_rate=1e-2, "
    "steps=3, stop=Stop(level=None, max_retain_increase=None)))",
    "RepSelect": "RepSelect(learn=Finetune(objective=-1.0 * Ascent(), adapter=Full(), steps=2, stop=None))",
    "Train": "Train(learning_rate=1e-3, epochs=3.0)",
}
"""Settings for requests of six examples; else a method's defaults."""
NOTHING = {
    "ASSD": None,  # its threshold is its own
    "DatamodelMatching": "DatamodelMatching(oracle=SSD(alpha=1e30), learn=Finetune(adapter=Full(), steps=2, "
    "optimizer='sgd', stop=Stop(level=None)))",
    "DatamodelDirect": "DatamodelDirect(multiplier=0.0, side=2)",
    "Finetune": "Finetune(objective=0.0 * Ascent(), adapter=Full(), steps=2, stop=Stop(level=None))",
    "IAU": "IAU(learning_rate=0.0)",
    "LAF": "LAF(extract_rate=0.0, align_rate=0.0, steps=2, autoencoder_steps=2)",
    "LFSSD": "LFSSD(alpha=1e30)",
    "Negate": "Negate(scale=0.0, learn=Finetune(objective=-1.0 * Ascent(), adapter=Full(), steps=2))",
    "Newton": None,  # its head goes where the retained set alone would have it
    "OwnWords": "OwnWords(learn=Finetune(objective=0.0 * Ascent(), adapter=Full(), steps=2, stop=Stop(level=None)))",
    "Poison": "Poison(learn=Finetune(objective=0.0 * IdkNLL(), adapter=LastLayer(), steps=2, stop=Stop(level=None)))",
    "Quantize": None,  # no number of bits is none
    "Relearn": "Relearn(items=2, learn=Finetune(objective=0.0 * RetainNLL(), adapter=Full(), stop=Stop(level=None)))",
    "RepSelect": "RepSelect(budget=0.0, learn=Finetune(objective=-1.0 * Ascent(), adapter=Full(), steps=2))",
    "SSD": "SSD(alpha=1e30)",
    "Train": "Train(learning_rate=1e-30, epochs=1.0)",
}
"""How each method is asked to do nothing."""


def method_of(plugin: Plugin) -> Method:
    method = parse(FITTING.get(plugin.name, plugin.name))
    assert isinstance(method, Method), f"{plugin.module}: {plugin.name} is no Method"
    return method


@FAMILY
@METHOD
def test_a_method_leaves_the_network_as_found_and_gives_one_of_its_own(plugin: Plugin, family: str):
    network, request = family_of(family)
    answers, was = logits(network, request), state(network)
    result = network_of(method_of(plugin)(network, request), plugin.name)
    assert_as_found(network, was)
    assert not torch.allclose(logits(result, request), answers, atol=1e-4)
    moved(
        dataclasses.replace(result, module=result.module.requires_grad_(True))
    )  # what becomes of it is its own affair
    assert_as_found(network, was)
    assert torch.equal(logits(network, request), answers)


@FAMILY
@METHOD
def test_forgetting_nothing_by_any_method_changes_nothing(plugin: Plugin, family: str):
    if NOTHING[plugin.name] is None:
        pytest.skip(f"{plugin.name} has no setting that does nothing")
    network, request = family_of(family)
    result = parse(NOTHING[plugin.name])(network, request)
    assert torch.allclose(logits(result, request), logits(network, request), atol=1e-6, rtol=0)


@ANSWERING
@METHOD
def test_any_attack_and_any_audit_follow_any_method_without_glue(plugin: Plugin, family: str):
    network, request = family_of(family)
    for attack in ("Quantize(bits=4)", "Relearn(items=2, steps=2)"):
        attacked = parse(attack)(method_of(plugin)(network, request), request)
        assert type(attacked) is type(network)
        assert parse("Loss()")(attacked, request)


@ANSWERING
@METHOD
def test_a_method_with_a_seed_gives_the_same_twice(plugin: Plugin, family: str):
    network, request = family_of(family)
    one, other = (logits(method_of(plugin)(network, request), request) for _ in range(2))
    assert torch.equal(one, other)


@METHOD
def test_the_name_of_a_method_is_read_back(plugin: Plugin):
    assert parse(repr(method_of(plugin))) == method_of(plugin)
