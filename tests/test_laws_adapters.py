"""Laws that every adapter keeps on every family: silent until it is trained, in its own numbers, merged traceless."""

import pytest
import torch

from expunge.core.adapter import Adapter
from expunge.core.model import Network
from expunge.core.question import Scores
from expunge.core.request import Request
from expunge.errors import ModelRefused
from expunge.methods.finetune import Finetune
from expunge.models.language import LanguageModel
from expunge.notation.parse import Plugin
from expunge.objectives.ascent import Ascent
from expunge.objectives.retain_nll import RetainNLL
from tests.families import (
    ADAPTER,
    EVERY_STEP,
    FAMILY,
    assert_as_found,
    family_of,
    llama,
    logits,
    made,
    mixtral,
    moved,
    same,
    state,
)

REFUSED = {
    "llama": (),
    "gpt2": (),
    "vit": (),
    "mixtral": (),
    "resnet": ("has no transformer blocks",),
}
"""Why an adapter may refuse a family."""
REASONS = {
    "SEUF": {**dict.fromkeys(REFUSED, ("has no experts",)), "mixtral": ()},
    "Fila": {**REFUSED, "mixtral": ("has fused experts, which cannot be initialised so",)},
}
"""The same for adapters that take other families."""


def text_family(plugin: Plugin) -> tuple[str, LanguageModel]:
    """A language model that the adapter takes."""
    return ("mixtral", mixtral()) if plugin.name == "SEUF" else ("llama", llama())


def adapted_of(plugin: Plugin, family: str, found: Network | None = None) -> tuple[Adapter, Network, Network, Request]:
    """An adapter, the network it was given, and what it made of it."""
    adapter = made(plugin, Adapter)
    network, request = family_of(family)
    network = found or network
    was = state(network)
    try:
        return adapter, network, adapter.insert(network, request), request
    except ModelRefused as refused:
        assert_as_found(network, was)
        if not any(reason in str(refused) for reason in REASONS.get(plugin.name, {}).get(family, REFUSED[family])):
            pytest.fail(f"{plugin.name} should take every transformer, but refused {family}: {refused}")
        pytest.skip(f"{plugin.name} refuses {family}, aloud, and leaves it as it was")


@FAMILY
@ADAPTER
def test_an_adapter_is_silent_until_it_is_trained(plugin: Plugin, family: str):
    adapter, network, adapted, request = adapted_of(plugin, family)
    assert same(adapted, network, request)
    deltas = dict(adapter.deltas(adapted, network))
    assert deltas
    assert all(delta.dim() == 2 and not delta.any() for delta in deltas.values())


@FAMILY
@ADAPTER
def test_an_adapter_leaves_the_network_as_found_whatever_becomes_of_its_own(plugin: Plugin, family: str):
    network, request = family_of(family)
    answers, was = logits(network, request), state(network)
    adapter, network, adapted, request = adapted_of(plugin, family, network)
    assert_as_found(network, was)
    moved(adapted).ask(Scores(), request.forget).nll().backward()
    adapter.merge(adapted)
    assert_as_found(network, was)
    assert torch.equal(logits(network, request), answers)
    assert not torch.allclose(logits(adapted, request), answers, atol=1e-3)


@FAMILY
@ADAPTER
def test_only_an_adapters_own_parameters_move_and_they_are_float32(plugin: Plugin, family: str):
    _, network, adapted, request = adapted_of(plugin, family)
    moving = adapted.trainable()
    assert moving
    assert {p.dtype for p in moving.values()} == {torch.float32}
    theirs = {p.data_ptr() for p in network.module.parameters()}
    assert not any(p.data_ptr() in theirs for p in moving.values())
    moved(adapted).ask(Scores(), request.forget).nll().backward()
    assert all(p.grad is not None for p in moving.values())
    assert all(p.grad is None for p in adapted.module.parameters() if not p.requires_grad)


@ADAPTER
def test_an_adapter_of_a_bfloat16_network_moves_in_float32(plugin: Plugin):
    family, network = text_family(plugin)
    network.module.to(torch.bfloat16)
    _, network, adapted, _ = adapted_of(plugin, family, network)
    assert {p.dtype for p in adapted.trainable().values()} == {torch.float32}
    assert {p.dtype for p in network.module.parameters()} == {torch.bfloat16}


@FAMILY
@ADAPTER
def test_merging_gives_plain_modules_that_answer_as_the_adapted_network_does(plugin: Plugin, family: str):
    adapter, network, adapted, request = adapted_of(plugin, family)
    answers, was = logits(moved(adapted), request), state(adapted)
    merged = adapter.merge(adapted)
    assert type(merged) is type(network)
    assert state(merged)["tree"] == state(network)["tree"]
    assert merged.module.state_dict().keys() == network.module.state_dict().keys()
    assert not torch.allclose(answers, logits(network, request), atol=1e-3)
    assert torch.allclose(logits(merged, request), answers, atol=1e-5 * max(1.0, float(answers.abs().max())), rtol=0)
    assert_as_found(adapted, was)
    assert torch.equal(logits(adapted, request), answers)
    # and a merged network is nobody's view: moving the adapted one no longer changes it
    kept = logits(merged, request)
    moved(adapted)
    assert torch.equal(logits(merged, request), kept)


@FAMILY
@ADAPTER
def test_the_deltas_of_an_adapter_are_what_merging_adds_to_the_weights(plugin: Plugin, family: str):
    adapter, network, adapted, _ = adapted_of(plugin, family)
    merged = adapter.merge(moved(adapted)).module.state_dict()
    weights = network.module.state_dict()
    changed = {name for name, weight in merged.items() if weight.dim() > 1 and not torch.equal(weight, weights[name])}
    deltas = dict(adapter.deltas(adapted, network))
    for name, delta in deltas.items():
        layer, _, expert = name.removesuffix("]").partition("[")  # of fused experts each has its own delta
        key = f"{layer}.weight" if f"{layer}.weight" in weights else layer
        change = merged[key] - weights[key]
        change = change[int(expert)] if expert else change.flatten(1)
        assert torch.linalg.matrix_norm(delta) == pytest.approx(torch.linalg.matrix_norm(change).item(), rel=1e-3)
        changed.discard(key)
    tied = {"lm_head.weight"} if getattr(network.module.config, "tie_word_embeddings", False) else set()
    assert changed <= tied, f"merging changes {sorted(changed)}, of which deltas() says nothing"


@FAMILY
@ADAPTER
def test_an_adapter_makes_no_second_copy_of_the_weights(plugin: Plugin, family: str):
    _, network, adapted, _ = adapted_of(plugin, family)
    ours = {p.untyped_storage().data_ptr() for p in adapted.module.parameters()}
    shared = [p.untyped_storage().data_ptr() in ours for p in network.module.parameters()]
    assert not any(shared) if plugin.name == "Full" else all(shared)  # Full says that it copies


@FAMILY
@ADAPTER
def test_forgetting_nothing_changes_nothing(plugin: Plugin, family: str):
    adapter, network, _, request = adapted_of(plugin, family)
    was = state(network)
    nothing = Finetune(
        objective=0.0 * Ascent() + 0.0 * RetainNLL(),
        adapter=adapter,
        learning_rate=1e-3,
        steps=3,
        batch=4,
        retain_batch=4,
        stop=EVERY_STEP,
    )
    adapted = nothing(network, request)
    assert same(adapted, network, request)
    assert_as_found(network, was)


@ADAPTER
def test_what_an_adapter_saves_is_safetensors_and_json(plugin: Plugin, tmp_path):
    adapter, _, adapted, _ = adapted_of(plugin, text_family(plugin)[0])
    adapter.save(moved(adapted), tmp_path / "adapter")
    left = sorted(path.name for path in (tmp_path / "adapter").glob("*"))
    assert left in ([], ["adapter_config.json", "adapter_model.safetensors"])
