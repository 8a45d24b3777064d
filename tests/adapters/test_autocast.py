"""The bounded adapter under `torch.autocast`: types as a plain layer's, gradients those of full precision, rounded."""

import pytest
import torch
from torch import Tensor
from transformers import AutoModelForCausalLM, LlamaConfig, MixtralConfig

from expunge.adapters._fold import bounded_linear
from expunge.adapters._maps import MAPS, Form
from expunge.adapters.bounded import Bounded
from expunge.models.language import LanguageModel

INSIDE = pytest.mark.parametrize("inside", [True, False], ids=["backward inside of autocast", "backward outside"])


def tensors() -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    draw = torch.Generator().manual_seed(0)
    x, weight, bias = (torch.randn(shape, generator=draw) for shape in ((2, 6, 32), (24, 32), (24,)))
    return x, weight / 6, bias, torch.randn(4, 32, generator=draw) * 0.1, torch.randn(24, 4, generator=draw) * 0.02


def step(map: str, inside: bool, enabled: bool) -> list[Tensor]:
    """The output, and the gradients of x, A and B."""
    x, weight, bias, a, b = tensors()
    moving = [t.requires_grad_() for t in (x, a, b)]
    with torch.autocast("cpu", torch.bfloat16, enabled=enabled):
        made = bounded_linear(x, weight, bias, a, b, Form.of(map, 4, 8.0, 10.0, None, 32))
        if inside:
            made.float().square().sum().backward()
    if not inside:
        made.float().square().sum().backward()
    return [made.detach(), *(t.grad for t in moving)]


@INSIDE
@pytest.mark.parametrize("map", MAPS)
@pytest.mark.parametrize("block", [1 << 20, 64], ids=["one block", "blocks of 2 rows"])
def test_a_step_is_that_of_full_precision_but_for_rounding(map, inside, block, monkeypatch):
    monkeypatch.setattr("expunge.adapters._fold.BLOCK", block)
    output, *gradients = step(map, inside, enabled=True)
    right, *others = step(map, inside, enabled=False)
    assert output.dtype == torch.bfloat16
    assert all(gradient.dtype == torch.float32 for gradient in gradients)
    for one, other in zip((output.float(), *gradients), (right, *others), strict=True):
        assert (one - other).norm() < 0.02 * other.norm()


@pytest.mark.parametrize("kind", ["bfloat16 under bfloat16", "float64"])
def test_weights_that_autocast_leaves_alone_are_left_alone(kind):
    dtype = torch.float64 if kind == "float64" else torch.bfloat16
    x, weight, bias, a, b = tensors()
    inputs = (x.to(dtype), weight.to(dtype), bias.to(dtype), a, b, Form.of("sine", 4, 8.0, 10.0, None, 32))
    plain = bounded_linear(*inputs)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(bounded_linear(*inputs), plain)


@INSIDE
@pytest.mark.parametrize("kind", ["dense", "fused experts"])
def test_a_model_trains_under_autocast_and_each_factor_gets_its_gradient(kind, inside):
    torch.manual_seed(0)
    sizes = {"vocab_size": 40, "hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2}
    config = LlamaConfig(num_attention_heads=4, **sizes)
    if kind != "dense":
        config = MixtralConfig(num_attention_heads=4, num_key_value_heads=4, num_local_experts=2, **sizes)
    network = LanguageModel.of(AutoModelForCausalLM.from_config(config).eval().requires_grad_(False), None)
    adapted = Bounded(omega=10.0).insert(network, None)
    for parameter in adapted.trainable().values():
        parameter.data += 0.02 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(1))
    tokens = torch.arange(12)[None]

    def gradients(enabled: bool) -> dict[str, Tensor]:
        adapted.module.zero_grad()
        with torch.autocast("cpu", torch.bfloat16, enabled=enabled):
            loss = adapted.module(input_ids=tokens, labels=tokens).loss
            if inside:
                loss.backward()
        if not inside:
            loss.backward()
        return {name: p.grad.clone() for name, p in adapted.trainable().items()}

    right, rounded = gradients(enabled=False), gradients(enabled=True)
    assert all(right[name].any() for name in right)
    for name, gradient in rounded.items():
        assert (gradient - right[name]).norm() < 0.1 * right[name].norm() + 1e-6, name
