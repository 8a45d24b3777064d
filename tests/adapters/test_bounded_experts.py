"""Low-rank updates of a mixture's fused experts: formula, gradients and cost."""

import math
from types import SimpleNamespace

import pytest
import torch
from torch.func import functional_call
from torch.utils.flop_counter import FlopCounterMode
from transformers.models.gpt_oss.modeling_gpt_oss import GptOssExperts
from transformers.models.mixtral.modeling_mixtral import MixtralExperts
from transformers.models.nemotron_h.modeling_nemotron_h import NemotronHExperts

from expunge.adapters._bounded_config import BoundedConfig
from expunge.adapters._bounded_experts import BoundedExperts
from tests.adapters.mixtures import EXPERTS, INNER, TOP, WIDTH

torch.set_num_threads(1)


SIZES = SimpleNamespace(
    num_local_experts=EXPERTS,
    n_routed_experts=EXPERTS,
    hidden_size=WIDTH,
    intermediate_size=INNER,
    moe_intermediate_size=INNER,
    moe_latent_size=None,
    hidden_act="silu",
    mlp_hidden_act="relu2",
    swiglu_alpha=1.7,
    swiglu_limit=7.0,
    _experts_implementation="eager",
)
LAYOUTS = pytest.mark.parametrize(
    "experts", [MixtralExperts, GptOssExperts, NemotronHExperts], ids=lambda e: e.__name__
)
"""Gate and up in one, [experts, out, in]; the same laid out [experts, in, out], with biases; no gate."""


def experts_of(kind: type, rank: int = 2, **settings) -> tuple[torch.nn.Module, BoundedExperts]:
    """Experts in float64, and the same with factors far from their start."""
    torch.manual_seed(0)
    base = kind(SIZES).double().requires_grad_(False)
    for parameter in base.parameters():
        torch.nn.init.normal_(parameter, std=0.5)
    adapted = BoundedExperts(base, "default", BoundedConfig(r=rank, alpha=2.0 * rank, **settings))
    draw = torch.Generator().manual_seed(1)
    for parameter in adapted.parameters():
        if parameter.requires_grad:
            parameter.data = torch.randn(parameter.shape, generator=draw, dtype=torch.float64) * 0.2
    return base, adapted


def calls(tokens: int = 7, among: int = EXPERTS) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Tokens, the experts that read each, all different, of the first `among`, and their weights."""
    draw = torch.Generator().manual_seed(2)
    indices = torch.stack([torch.randperm(among, generator=draw)[:TOP] for _ in range(tokens)])
    states = torch.randn(tokens, WIDTH, generator=draw, dtype=torch.float64)
    return states, indices, torch.rand(tokens, TOP, generator=draw, dtype=torch.float64)


def dense(
    base: torch.nn.Module, adapted: BoundedExperts, inputs: tuple, omega: float, transposed: bool
) -> torch.Tensor:
    """The base's own answer with W_e + 2 sin(omega B_e A_e) / sqrt(in) for every expert at once."""
    weights = {}
    for which in adapted.matrices:
        a, b = adapted.factors("default", which)
        delta = 2 * torch.sin(omega * (b @ a)) / math.sqrt(a.shape[-1])
        weights[which] = getattr(base, which) + (delta.transpose(1, 2) if transposed else delta)
    return functional_call(base, weights, inputs)


@LAYOUTS
@pytest.mark.parametrize("implementation", ["eager", "batched_mm"])
def test_folded_experts_answer_and_slope_as_the_plain_formula_does(experts, implementation, monkeypatch):
    monkeypatch.setattr(SIZES, "_experts_implementation", implementation)
    base, adapted = experts_of(experts, omega=3.0)
    states, indices, weights = calls()
    inputs = (states.requires_grad_(), indices, weights.requires_grad_())
    moving = [states, weights, *(p for p in adapted.parameters() if p.requires_grad)]
    assert len(moving) == 2 + 4  # A and B of the two matrices
    expected = dense(base, adapted, inputs, 3.0, experts is GptOssExperts)
    got = adapted(*inputs)
    assert torch.allclose(got, expected, atol=1e-12)
    for one, other in zip(
        torch.autograd.grad(got.square().sum(), moving),
        torch.autograd.grad(expected.square().sum(), moving),
        strict=True,
    ):
        assert torch.allclose(one, other, atol=1e-9)
        assert other.any()


def test_gradients_agree_with_finite_differences():
    _, adapted = experts_of(MixtralExperts, omega=3.0)
    states, indices, weights = calls(tokens=2)
    factors = [p for p in adapted.parameters() if p.requires_grad]

    def said(states, weights, *_factors):
        return adapted(states, indices, weights)

    assert torch.autograd.gradcheck(said, (states.requires_grad_(), weights.requires_grad_(), *factors))


@LAYOUTS
def test_an_expert_that_no_token_calls_has_a_gradient_of_zeros_and_the_others_do_not(experts):
    """Processes that share a step add gradients up together, so none may lack one."""
    _, adapted = experts_of(experts)
    adapted(*calls(among=4)).square().sum().backward()
    for which in adapted.matrices:
        for factor in adapted.factors("default", which):
            assert factor.grad is not None
            assert [bool(each.any()) for each in factor.grad] == [True] * 4 + [False] * 2
    assert all(p.grad is None for p in adapted.base_layer.parameters())


def test_an_expert_costs_one_and_a_half_times_a_frozen_one_and_one_that_is_not_called_nothing():
    sizes = SimpleNamespace(**{**vars(SIZES), "hidden_size": 512, "intermediate_size": 384, "num_local_experts": 4})
    base = MixtralExperts(sizes).requires_grad_(False)
    adapted = BoundedExperts(base, "default", BoundedConfig(r=8))
    tokens, called = 600, 2
    indices = torch.arange(called).expand(tokens, called)  # each token calls experts 0 and 1; 2 and 3 are idle
    states, weights = torch.randn(tokens, 512, requires_grad=True), torch.full((tokens, called), 0.5)

    def flops(experts) -> int:
        with FlopCounterMode(display=False) as counter:
            experts(states, indices, weights).sum().backward()
        return counter.get_total_flops()

    numbers = 768 * 512 + 512 * 384  # gate and up, and down, of one expert
    frozen, ours = flops(base), flops(adapted)
    assert frozen == called * 4 * tokens * numbers
    # As for a plain layer: x W', dY W' and dY^T X; B A three times, dB and dA once each.
    assert ours == called * (6 * tokens + 10 * 8) * numbers
    assert ours / frozen == pytest.approx(1.5 + 10 * 8 / (4 * tokens))  # 1.533 at 600 tokens an expert


def test_nothing_of_a_weights_size_is_kept_for_backward():
    sizes = SimpleNamespace(**{**vars(SIZES), "hidden_size": 64, "intermediate_size": 48})
    base = MixtralExperts(sizes).requires_grad_(False)
    adapted = BoundedExperts(base, "default", BoundedConfig(r=2))
    states, kept = torch.randn(5, 64, requires_grad=True), []
    indices = torch.stack([torch.randperm(EXPERTS)[:TOP] for _ in range(5)])
    with torch.autograd.graph.saved_tensors_hooks(lambda t: kept.append(t) or t, lambda t: t):
        adapted(states, indices, torch.rand(5, TOP))
    given = {p.untyped_storage().data_ptr() for p in adapted.parameters()}
    new = [t for t in kept if t.untyped_storage().data_ptr() not in given]
    assert len(kept) > len(new) > 0
    assert max(t.numel() for t in new) <= 5 * TOP * 2 * 48  # no more than what the tokens make inside of their experts


def test_two_adapters_of_the_same_experts_add_up():
    base, adapted = experts_of(MixtralExperts, map="identity")
    inputs = calls()
    adapted.update_layer("other", BoundedConfig(r=2, alpha=4.0, map="identity"))
    for which in adapted.matrices:
        for factor, first in zip(adapted.factors("other", which), adapted.factors("default", which), strict=True):
            factor.data = first.detach().clone()
    adapted.set_adapter(["default", "other"])
    twice = {
        w: getattr(base, w) + 2 * 2 * (b @ a)
        for w, (a, b) in ((w, adapted.factors("other", w)) for w in adapted.matrices)
    }
    assert torch.allclose(adapted(*inputs), functional_call(base, twice, inputs), atol=1e-12)
