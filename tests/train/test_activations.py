"""Recomputed activations: less is kept, and not one gradient is lost, which elsewhere happens in silence."""

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from expunge.core.request import Request
from expunge.core.view import View
from expunge.data.text import Passage
from expunge.errors import ModelRefused, UsageRefused
from expunge.events import Event, Step
from expunge.models.language import LanguageModel
from expunge.notation.parse import parse
from expunge.train.activations import manage_activations

torch.set_num_threads(1)

V = 40
ADAPTERS = [
    "Bounded(rank=2)",
    "Bounded(rank=2, targets='all')",
    "LoRA(rank=2)",
    "LoRA(rank=2, targets='all')",
    "Full()",
]


def tiny() -> LanguageModel:
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=V, hidden_size=16, intermediate_size=24, num_hidden_layers=3, num_attention_heads=4, eos_token_id=0
    )
    return LanguageModel.of(LlamaForCausalLM(config).eval(), None)


def passages(name: str, seed: int) -> tuple[Passage, ...]:
    draw = torch.Generator().manual_seed(seed)
    tokens = [tuple(torch.randint(1, V, (6 + k,), generator=draw).tolist()) for k in range(3)]
    return tuple(Passage(f"{name}-{k}", its, 2, "", f"{name}-{k}") for k, its in enumerate(tokens))


REQUEST = Request(forget=passages("f", 1), retain=passages("r", 2))


def gradients(adapter: str, activations: str) -> tuple[dict[str, torch.Tensor], int]:
    """Gradients of a loss of both sets, and the bytes that backward was kept waiting with."""
    torch.manual_seed(0)
    network = parse(adapter).insert(tiny(), REQUEST)
    for parameter in network.trainable().values():
        torch.nn.init.normal_(parameter, std=0.1)  # off the start, where half of an adapter's gradients are 0
    kept: dict[int, int] = {}

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        kept[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    with manage_activations(network.module, activations):
        view = View(network, {"forget": REQUEST.forget, "retain": REQUEST.retain})
        with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
            loss = view.retain.nll() - view.forget.nll()
        loss.backward()
    return {name: p.grad for name, p in network.trainable().items()}, sum(kept.values())


@pytest.mark.parametrize("adapter", ADAPTERS)
def test_every_parameter_gets_the_gradient_that_it_gets_otherwise(adapter: str):
    plain, much = gradients(adapter, "kept")
    again, little = gradients(adapter, "recomputed")
    assert set(plain) == set(again)
    for name, gradient in plain.items():
        assert gradient is not None, name
        assert gradient.abs().max() > 0, name  # the first block's, whose input needs none, too
        torch.testing.assert_close(again[name], gradient, rtol=1e-5, atol=1e-7)
    assert little < much


def test_a_run_takes_the_same_steps():
    losses = []
    for activations in ("kept", "recomputed"):
        events: list[Event] = []
        settings = f"adapter=Bounded(rank=2), steps=3, norms=False, activations='{activations}', stop=Stop(level=None)"
        parse(f"Finetune({settings})")(tiny(), REQUEST, events.append)
        losses.append([event.loss for event in events if isinstance(event, Step)])
    assert losses[0] == pytest.approx(losses[1], abs=1e-6)


def test_the_blocks_are_as_before_when_the_run_is_over():
    network = tiny()
    with manage_activations(network.module, "recomputed"):
        assert all("forward" in vars(block) for block in network.module.model.layers)
    assert not any("forward" in vars(block) for block in network.module.model.layers)


def test_what_has_no_blocks_and_what_is_no_setting_are_refused():
    with (
        pytest.raises(ModelRefused, match="no transformer blocks"),
        manage_activations(torch.nn.Linear(2, 2), "recomputed"),
    ):
        pass
    with pytest.raises(UsageRefused, match="activations.* kept"):
        parse("Finetune(activations='forgotten')")
