"""The bounded adapter: its formula, its bounds, its gradients, its cost, and its life as a peft adapter."""

import json
import math

import pytest
import torch
from peft import PeftModel
from torch.utils.flop_counter import FlopCounterMode
from transformers import AutoModelForCausalLM, GPT2Config, LlamaConfig

from expunge.adapters._bounded_config import BoundedConfig
from expunge.adapters._bounded_linear import BoundedLinear
from expunge.adapters._fold import bounded_linear
from expunge.adapters._maps import MAPS, Form
from expunge.adapters.bounded import Bounded
from expunge.adapters.lora import LoRA
from expunge.errors import UsageRefused
from expunge.models.language import LanguageModel

BOUNDED = [name for name, map in MAPS.items() if map.bounded]


def factors(out: int = 5, width: int = 7, rank: int = 3, size: float = 1.0) -> tuple[torch.Tensor, torch.Tensor]:
    draw = torch.Generator().manual_seed(0)
    a = torch.randn(rank, width, generator=draw, dtype=torch.float64) * size
    return a, torch.randn(out, rank, generator=draw, dtype=torch.float64) * size


def tiny(config: object | None = None) -> LanguageModel:
    torch.manual_seed(0)
    config = config or LlamaConfig(
        vocab_size=40, hidden_size=16, intermediate_size=24, num_hidden_layers=2, num_attention_heads=4
    )
    return LanguageModel.of(AutoModelForCausalLM.from_config(config).eval().requires_grad_(False), None)


def shaken(network: LanguageModel, adapter: Bounded | LoRA) -> LanguageModel:
    """The adapted network with both factors far from their start."""
    adapted = adapter.insert(network, None)
    draw = torch.Generator().manual_seed(1)
    for parameter in adapted.trainable().values():
        parameter.data = torch.randn(parameter.shape, generator=draw) * 0.1
    return adapted


def logits(network: LanguageModel) -> torch.Tensor:
    with torch.inference_mode():
        return network.module(input_ids=torch.arange(12)[None]).logits


def test_the_formula_is_the_one_of_the_method():
    a, b = factors()
    form = Form.of("sine", rank=3, alpha=6.0, omega=100.0, gain=None, in_features=7)
    assert torch.allclose(form.delta(a, b), (6 / 3) * torch.sin(100 * (b @ a)) / math.sqrt(7), atol=1e-12)


@pytest.mark.parametrize("map", BOUNDED)
@pytest.mark.parametrize("size", [1e-3, 1.0, 1e6])
def test_no_entry_ever_exceeds_the_bound(map, size):
    form = Form.of(map, rank=3, alpha=6.0, omega=100.0, gain=4.0, in_features=7)
    bound = (6 / 3) / 4 if MAPS[map].sharpened else (6 / 3) / 100
    assert form.delta(*factors(size=size)).abs().max() <= bound * (1 + 1e-12)


@pytest.mark.parametrize("map", MAPS)
def test_the_update_is_zero_at_the_start(map):
    network = tiny()
    adapted = Bounded(map=map).insert(network, None)
    assert all(not delta.any() for _, delta in Bounded(map=map).deltas(adapted, network))
    assert torch.allclose(logits(adapted), logits(network), atol=1e-6)


@pytest.mark.parametrize("map", ["sine", "tanh", "hardtanh", "linear"])
def test_at_small_phase_the_update_is_lora_scaled_by_omega_over_gain(map):
    a, b = factors(size=1e-4)
    form = Form.of(map, rank=3, alpha=6.0, omega=100.0, gain=4.0, in_features=7)
    assert torch.allclose(form.delta(a, b), (6 / 3) * (100 / 4) * (b @ a), rtol=1e-9, atol=1e-17)


def test_sigmoid_is_tanh_at_half_the_frequency():
    a, b = factors(size=0.1)
    sigmoid = Form.of("sigmoid", 3, 6.0, 100.0, 4.0, 7).delta(a, b)
    assert torch.allclose(sigmoid, Form.of("tanh", 3, 6.0, 50.0, 4.0, 7).delta(a, b), atol=1e-12)


def test_identity_is_pefts_lora_to_the_last_digit_that_float32_has():
    network = tiny()
    ours, theirs = shaken(network, Bounded(map="identity", rank=4, alpha=8.0)), shaken(network, LoRA(rank=4, alpha=8.0))
    mine = dict(Bounded(map="identity", rank=4, alpha=8.0).deltas(ours, network))
    yours = dict(LoRA().deltas(theirs, network))
    assert mine.keys() == yours.keys()
    assert all(torch.allclose(mine[name], yours[name], atol=1e-7) for name in mine)
    assert torch.allclose(logits(ours), logits(theirs), atol=1e-5)


@pytest.mark.parametrize("map", ["sine", "tanh", "sigmoid", "identity", "linear"])
def test_gradients_agree_with_finite_differences(map):
    a, b = (factor.requires_grad_() for factor in factors(size=0.05))
    draw = torch.Generator().manual_seed(2)
    x = torch.randn(2, 4, 7, generator=draw, dtype=torch.float64, requires_grad=True)
    weight, bias = torch.randn(5, 7, generator=draw).double(), torch.randn(5, generator=draw).double()
    form = Form.of(map, 3, 6.0, 3.0, 4.0, 7)
    assert torch.autograd.gradcheck(lambda *t: bounded_linear(t[0], weight, bias, t[1], t[2], form), (x, a, b))


@pytest.mark.parametrize("map", MAPS)
@pytest.mark.parametrize("block", [1 << 20, 14])
def test_gradients_agree_with_autograd_on_the_plain_formula(map, block, monkeypatch):
    monkeypatch.setattr("expunge.adapters._fold.BLOCK", block)  # 14 entries: rows in blocks of 2, the last of 1
    a, b = (factor.requires_grad_() for factor in factors(size=0.05))
    x = torch.randn(6, 7, dtype=torch.float64, generator=torch.Generator().manual_seed(3), requires_grad=True)
    weight = torch.ones(5, 7, dtype=torch.float64)
    form = Form.of(map, 3, 6.0, 30.0, 4.0, 7)
    plain = {
        "sine": torch.sin,
        "tanh": torch.tanh,
        "sigmoid": lambda u: 2 * torch.sigmoid(u) - 1,
        "hardtanh": lambda u: u.clamp(-1, 1),
        "clip": lambda u: u.clamp(-1, 1),
        "identity": lambda u: u,
        "linear": lambda u: u,
    }[map]
    expected = x @ (weight + form.scale * plain(form.omega * (b @ a))).T
    got = bounded_linear(x, weight, None, a, b, form)
    assert torch.allclose(got, expected, atol=1e-12)
    for one, other in zip(
        torch.autograd.grad(got.square().sum(), (x, a, b)),
        torch.autograd.grad(expected.square().sum(), (x, a, b)),
        strict=True,
    ):
        assert torch.allclose(one, other, atol=1e-9)


def test_the_phase_is_taken_in_float32_under_bfloat16_weights():
    a, b = (factor.float() for factor in factors(size=0.3))
    weight = torch.zeros(5, 7, dtype=torch.bfloat16)
    got = bounded_linear(torch.eye(7).bfloat16(), weight, None, a, b, Form.of("sine", 3, 6.0, 100.0, 4.0, 7))
    exact = (2 / 4) * torch.sin(100 * (b @ a)).T
    # Rounding the result to 8 bits costs up to 2^-9 of 0.5; a phase of 100 in bfloat16 would be off by radians.
    assert (got.float() - exact).abs().max() <= 0.5 * 2**-8


def test_a_layer_costs_at_most_1_51_times_a_frozen_one_and_keeps_nothing_of_its_size():
    out, width, tokens, rank = 1024, 3584, 4096, 8
    shapes = ((tokens, width), (rank, width), (out, rank))
    # Tensors without data: the counter reads shapes alone.
    x, a, b = (torch.empty(shape, device="meta", requires_grad=True) for shape in shapes)
    weight = torch.empty(out, width, device="meta")
    form = Form.of("sine", rank, 16.0, 100.0, None, width)
    kept: list[torch.Tensor] = []

    def flops(run) -> int:
        with FlopCounterMode(display=False) as counter:
            run().sum().backward()
        return counter.get_total_flops()

    frozen = flops(lambda: torch.nn.functional.linear(x, weight))
    with torch.autograd.graph.saved_tensors_hooks(lambda t: kept.append(t) or t, lambda t: t):
        y = bounded_linear(x, weight, None, a, b, form)
    extra = [t.shape for t in kept if not any(t is given or t._base is given for given in (x, weight, a, b))]
    assert y.shape == (tokens, out)
    assert frozen == 2 * 2 * tokens * out * width
    ours = flops(lambda: bounded_linear(x, weight, None, a, b, form))
    # x W' forward; dY W' and dY^T X backward; B A three times (forward, and twice again), dB and dA once each.
    assert ours == 3 * 2 * tokens * out * width + 5 * 2 * rank * out * width
    assert ours <= 1.51 * frozen
    assert extra == []


def test_two_hundred_ascending_steps_at_rate_0_1_stay_finite_and_bounded():
    network = tiny()
    method = Bounded(rank=4, alpha=8.0)
    adapted = method.insert(network, None)
    optimizer = torch.optim.AdamW(adapted.trainable().values(), lr=0.1)
    tokens = torch.arange(12)[None]
    for _ in range(200):
        optimizer.zero_grad()
        loss = -adapted.module(input_ids=tokens, labels=tokens).loss
        loss.backward()
        optimizer.step()
    assert math.isfinite(loss.item())
    for name, delta in method.deltas(adapted, network):
        width = network.module.get_submodule(name).in_features
        assert delta.abs().max() <= 8 / 4 / math.sqrt(width) * (1 + 1e-6)


@pytest.mark.parametrize("config", [None, GPT2Config(vocab_size=40, n_embd=16, n_layer=2, n_head=4, n_positions=64)])
def test_merge_and_unmerge_are_exact(config):
    network = tiny(config)
    adapted = shaken(network, Bounded())
    before = {name: p.clone() for name, p in network.module.named_parameters()}
    apart = logits(adapted)
    adapted.module.merge_adapter()
    assert torch.allclose(logits(adapted), apart, atol=1e-5)
    adapted.module.unmerge_adapter()
    for name, part in adapted.module.named_modules():
        if isinstance(part, BoundedLinear):
            weight = part.get_base_layer().weight
            assert torch.equal(weight, before[f"{name.removeprefix('base_model.model.')}.weight"])
    assert torch.equal(logits(adapted), apart)


def test_it_is_read_back_by_peft_and_merged_to_a_folder_that_plain_transformers_loads(tmp_path, script):
    network = tiny()
    network.module.save_pretrained(tmp_path / "base")
    adapted = shaken(network, Bounded(rank=4, omega=30.0))
    Bounded().save(adapted, tmp_path / "adapter")
    config = json.loads((tmp_path / "adapter" / "adapter_config.json").read_text())
    assert (config["peft_type"], config["r"], config["omega"], config["map"]) == ("BOUNDED", 4, 30.0, "sine")
    base = AutoModelForCausalLM.from_pretrained(tmp_path / "base")
    read = PeftModel.from_pretrained(base, tmp_path / "adapter").eval()
    with torch.inference_mode():
        assert torch.equal(read(input_ids=torch.arange(12)[None]).logits, logits(adapted))
    read.merge_and_unload().save_pretrained(tmp_path / "merged")
    done = script(
        "import sys, torch; from transformers import AutoModelForCausalLM as M;"
        f"m = M.from_pretrained(r'{tmp_path / 'merged'}').eval();"
        "assert not any(name.startswith('expunge') for name in sys.modules);"
        f"torch.save(m(input_ids=torch.arange(12)[None]).logits, r'{tmp_path / 'logits.pt'}')"
    )
    assert done.code == 0, done.err
    assert torch.allclose(torch.load(tmp_path / "logits.pt"), logits(adapted), atol=1e-5)


def test_a_peft_without_expunge_refuses_the_adapter_aloud_and_one_with_it_loads(tmp_path, script):
    network = tiny()
    network.module.save_pretrained(tmp_path / "base")
    Bounded().save(Bounded().insert(network, None), tmp_path / "adapter")
    lines = (
        "import sys; from transformers import AutoModelForCausalLM as M; from peft import PeftModel;"
        f"PeftModel.from_pretrained(M.from_pretrained(r'{tmp_path / 'base'}'), r'{tmp_path / 'adapter'}')"
    )
    alone = script(lines)
    assert alone.code != 0
    assert "BOUNDED" in alone.err
    for order in (f"import expunge; {lines}", lines.replace("from peft", "import peft, expunge; from peft")):
        assert script(order).code == 0


def test_an_adapter_with_nan_is_never_merged():
    network = tiny()
    adapted = shaken(network, Bounded())
    next(iter(adapted.trainable().values())).data.fill_(math.nan)
    with pytest.raises(ValueError, match="NaN"):
        Bounded().merge(adapted)


def test_every_wrong_setting_is_named_at_once():
    with pytest.raises(UsageRefused) as refused:
        Bounded(map="sinus", rank=0, omega=math.inf)
    assert all(word in str(refused.value) for word in ("'sinus'", "sine, tanh", "rank must be", "omega must be"))
    with pytest.raises(UsageRefused):
        BoundedConfig(r=10**7)
