"""Low-rank updates of a mixture's fused experts: formula, gradients, cost, and their life in peft's form."""

import json
import math
import subprocess
import sys
from types import SimpleNamespace

import pytest
import torch
from peft import PeftModel
from torch.func import functional_call
from torch.utils.flop_counter import FlopCounterMode
from transformers import (
    AutoModelForCausalLM,
    DeepseekV3Config,
    GptOssConfig,
    LlamaConfig,
    MixtralConfig,
    OlmoeConfig,
    Qwen2MoeConfig,
)
from transformers.models.gpt_oss.modeling_gpt_oss import GptOssExperts
from transformers.models.llama.modeling_llama import LlamaMLP
from transformers.models.mixtral.modeling_mixtral import MixtralExperts
from transformers.models.nemotron_h.modeling_nemotron_h import NemotronHExperts

from expunge.adapters._bounded_experts import BoundedExperts
from expunge.adapters._bounded_peft import BoundedConfig
from expunge.adapters._layers import choose_layers, kind_of, kinds
from expunge.adapters.bounded import Bounded
from expunge.adapters.fila import Fila
from expunge.adapters.lora import LoRA
from expunge.core.model import Network
from expunge.core.question import Scores
from expunge.core.request import Request
from expunge.data.text import Passage
from expunge.errors import ModelRefused
from expunge.methods.finetune import Finetune
from expunge.methods.stop import Stop
from expunge.models.language import LanguageModel

torch.set_num_threads(1)

V, EXPERTS, TOP, WIDTH, INNER = 40, 6, 3, 16, 12
SHAPE = {
    "vocab_size": V,
    "hidden_size": WIDTH,
    "intermediate_size": INNER,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 4,
    "max_position_embeddings": 32,
    "eos_token_id": 0,
    "bos_token_id": None,
    "pad_token_id": None,
    "num_experts_per_tok": TOP,
}
CONFIGS = {
    "mixtral": MixtralConfig(**SHAPE, num_local_experts=EXPERTS),
    "olmoe": OlmoeConfig(**SHAPE, num_experts=EXPERTS),
    "qwen2_moe": Qwen2MoeConfig(
        **SHAPE, num_experts=EXPERTS, moe_intermediate_size=INNER, shared_expert_intermediate_size=8
    ),
    "gpt_oss": GptOssConfig(**{**SHAPE, "pad_token_id": 0}, num_local_experts=EXPERTS, head_dim=4),
    "deepseek_v3": DeepseekV3Config(
        **SHAPE,
        n_routed_experts=EXPERTS,
        n_group=2,
        topk_group=1,
        moe_intermediate_size=INNER,
        first_k_dense_replace=1,
        q_lora_rank=8,
        kv_lora_rank=8,
        qk_rope_head_dim=4,
        qk_nope_head_dim=4,
        v_head_dim=8,
    ),
}
KIND = pytest.mark.parametrize("kind", CONFIGS)
ONE_BY_ONE = pytest.mark.parametrize("implementation", ["eager", "grouped_mm"])


def mixture(kind: str = "mixtral", implementation: str = "grouped_mm") -> LanguageModel:
    torch.manual_seed(0)
    module = AutoModelForCausalLM.from_config(CONFIGS[kind]).eval()
    for parameter in module.parameters():
        if parameter.dim() > 1:
            torch.nn.init.normal_(parameter, std=0.3)
    module.set_experts_implementation(implementation)
    return LanguageModel.of(module.requires_grad_(False), None)


def texts(seed: int) -> tuple[Passage, ...]:
    draw = torch.Generator().manual_seed(seed)
    tokens = [tuple(torch.randint(1, V, (5 + k,), generator=draw).tolist()) for k in range(4)]
    return tuple(Passage(f"{seed}-{k}", each, 2, "", f"{seed} {k}") for k, each in enumerate(tokens))


REQUEST = Request(forget=texts(0), retain=texts(1))


def logits(network: Network) -> torch.Tensor:
    with torch.inference_mode():
        return network.ask(Scores(), REQUEST.forget).logits


def shaken(network: LanguageModel, adapter: Bounded | LoRA) -> LanguageModel:
    """The adapted network with all factors far from their start."""
    adapted = adapter.insert(network, REQUEST)
    draw = torch.Generator().manual_seed(1)
    for parameter in adapted.trainable().values():
        parameter.data = torch.randn(parameter.shape, generator=draw) * 0.1
    return adapted


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


@pytest.mark.parametrize(
    ("kind", "implementation"),
    [*((kind, "grouped_mm") for kind in CONFIGS), *((kind, "eager") for kind in CONFIGS if kind != "gpt_oss")],
)
@pytest.mark.parametrize("adapter", [Bounded(), LoRA(), LoRA(targets="all")], ids=repr)
def test_at_the_start_a_mixture_answers_as_the_base_does_to_the_bit(kind, implementation, adapter):
    network = mixture(kind, implementation)
    adapted = adapter.insert(network, REQUEST)
    assert any(isinstance(part, BoundedExperts) for part in adapted.module.modules())
    assert torch.equal(logits(adapted), logits(network))


@pytest.mark.parametrize(
    ("kind", "implementation"), [*((kind, "batched_mm") for kind in CONFIGS), ("gpt_oss", "eager")]
)
def test_where_matrices_are_multiplied_in_another_way_the_start_is_the_bases_but_for_rounding(kind, implementation):
    network = mixture(kind, implementation)
    assert torch.allclose(logits(Bounded().insert(network, REQUEST)), logits(network), atol=1e-5)


@KIND
@ONE_BY_ONE
@pytest.mark.parametrize("adapter", [Bounded(), LoRA()], ids=repr)
def test_a_merged_mixture_answers_as_the_adapted_one_and_is_plain_again(kind, implementation, adapter):
    network = mixture(kind, implementation)
    adapted = shaken(network, adapter)
    merged = adapter.merge(adapted)
    assert not torch.allclose(logits(adapted), logits(network), atol=0.1)
    assert torch.allclose(logits(merged), logits(adapted), atol=1e-5)
    assert [type(part) for part in merged.module.modules()] == [type(part) for part in network.module.modules()]


def test_an_update_of_the_experts_keeps_to_the_bound_whatever_the_factors_become():
    network = mixture()
    adapted = Bounded(rank=4, alpha=8.0).insert(network, REQUEST)
    for parameter in adapted.trainable().values():
        parameter.data.normal_(std=1e4)
    deltas = dict(Bounded().deltas(adapted, network))
    assert set(deltas) == {
        f"model.layers.{block}.mlp.experts.{which}[{expert}]"
        for block in range(2)
        for which in ("gate_up_proj", "down_proj")
        for expert in range(EXPERTS)
    }
    for name, delta in deltas.items():
        width = INNER if "down_proj" in name else WIDTH
        assert delta.shape[1] == width
        assert delta.abs().max() <= 8 / 4 / math.sqrt(width) * (1 + 1e-6)


def test_each_expert_starts_as_a_layer_of_its_width_does_and_a_seed_fixes_it():
    def start(seed: int) -> dict[str, torch.Tensor]:
        network = mixture()
        torch.manual_seed(seed)
        return {name: p.detach() for name, p in Bounded().insert(network, REQUEST).trainable().items()}

    one, again, other = start(3), start(3), start(4)
    assert all(torch.equal(one[name], again[name]) for name in one)
    for name, factor in one.items():
        if "_B." in name:
            assert not factor.any()
            continue
        assert not torch.equal(factor, other[name])
        width = factor.shape[-1]
        # Kaiming-uniform with a = sqrt 5 draws from +-1 / sqrt(in): of an expert's inputs, not of rank times as many.
        assert 0.9 / math.sqrt(width) < factor.abs().max() <= 1 / math.sqrt(width)


@pytest.mark.parametrize("kind", ["mixtral", "qwen2_moe"])
def test_the_default_method_trains_a_mixture_and_merges_it(kind, tmp_path):
    network = mixture(kind)
    was = {name: weight.clone() for name, weight in network.module.state_dict().items()}
    adapted = Finetune(steps=3, batch=2, retain_batch=2, stop=Stop(level=None, max_retain_increase=None))(
        network, REQUEST
    )
    merged = adapted.plain()
    assert all(torch.equal(weight, was[name]) for name, weight in network.module.state_dict().items())
    changed = {name for name, weight in merged.module.state_dict().items() if not torch.equal(weight, was[name])}
    expected = {f"model.layers.{b}.mlp.experts.{w}" for b in (0, 1) for w in ("gate_up_proj", "down_proj")}
    if kind == "qwen2_moe":  # its shared expert is a plain MLP; the gate of it, of one number, stays
        expected |= {
            f"model.layers.{b}.mlp.shared_expert.{w}.weight"
            for b in (0, 1)
            for w in ("gate_proj", "up_proj", "down_proj")
        }
    assert changed == expected
    merged.module.save_pretrained(tmp_path)
    loaded = LanguageModel.of(AutoModelForCausalLM.from_pretrained(tmp_path), None)
    assert torch.allclose(logits(loaded), logits(adapted), atol=1e-5)


def test_recomputed_activations_end_in_the_same_place():
    def end(activations: str) -> dict[str, torch.Tensor]:
        method = Finetune(
            steps=3, batch=2, retain_batch=2, stop=Stop(level=None, max_retain_increase=None), activations=activations
        )
        return method(mixture(), REQUEST).plain().module.state_dict()

    kept, again = end("kept"), end("recomputed")
    assert all(torch.allclose(kept[name], again[name], atol=1e-6) for name in kept)


def test_what_is_trained_belongs_to_the_mlp():
    network = mixture("qwen2_moe")
    known = kinds(network.module)
    assert {kind_of(name, known) for name in Bounded().insert(network, REQUEST).trainable()} == {"mlp"}
    assert len(choose_layers(network.module, "mlp")) == 2 * (1 + 3)  # the experts as one, and the shared expert's three
    assert len(choose_layers(network.module, "mlp", only=[1])) == 1 + 3


@KIND
def test_a_saved_bounded_adapter_of_experts_is_read_back_by_peft(kind, tmp_path):
    network = mixture(kind)
    adapted = shaken(network, Bounded(rank=4, omega=30.0))
    Bounded().save(adapted, tmp_path / "adapter")
    config = json.loads((tmp_path / "adapter" / "adapter_config.json").read_text())
    assert (config["peft_type"], config["r"], config["omega"]) == ("BOUNDED", 4, 30.0)
    read = PeftModel.from_pretrained(mixture(kind).module, tmp_path / "adapter").eval()
    assert torch.equal(logits(network.fork(read)), logits(adapted))


def test_a_saved_lora_of_experts_is_pefts_own_and_read_back_without_expunge(tmp_path):
    network = mixture()
    network.module.save_pretrained(tmp_path / "base")
    adapted = shaken(network, LoRA(rank=4, targets="all"))
    LoRA(rank=4, targets="all").save(adapted, tmp_path / "adapter")
    config = json.loads((tmp_path / "adapter" / "adapter_config.json").read_text())
    assert (config["peft_type"], config["r"], config["lora_alpha"]) == ("LORA", 4, 16.0)
    assert len(config["target_parameters"]) == 2 * 2
    script = (
        "import sys, torch; from transformers import AutoModelForCausalLM as M; from peft import PeftModel;"
        f"m = PeftModel.from_pretrained(M.from_pretrained(r'{tmp_path / 'base'}'), r'{tmp_path / 'adapter'}').eval();"
        "assert not any(name.startswith('expunge.') for name in sys.modules);"
        f"torch.save(m(input_ids=torch.arange(12)[None]).logits, r'{tmp_path / 'logits.pt'}')"
    )
    subprocess.run([sys.executable, "-c", script], check=True, capture_output=True)
    with torch.inference_mode():
        ours = adapted.module(input_ids=torch.arange(12)[None]).logits
    assert torch.allclose(torch.load(tmp_path / "logits.pt"), ours, atol=1e-4)


def test_a_lora_that_peft_would_put_elsewhere_is_saved_in_our_form_and_says_so(tmp_path):
    """peft takes a DeepSeek's plain MLP for parts of the experts that older transformers had."""
    network = mixture("deepseek_v3")
    adapted = shaken(network, LoRA())
    LoRA().save(adapted, tmp_path / "adapter")
    config = json.loads((tmp_path / "adapter" / "adapter_config.json").read_text())
    assert (config["peft_type"], config["map"]) == ("BOUNDED", "identity")
    read = PeftModel.from_pretrained(mixture("deepseek_v3").module, tmp_path / "adapter").eval()
    assert torch.equal(logits(network.fork(read)), logits(adapted))


def test_merging_in_place_unmerging_and_switching_off_are_exact():
    network = mixture()
    adapted = shaken(network, Bounded())
    apart, plain = logits(adapted), logits(network)
    with adapted.module.disable_adapter():
        assert torch.equal(logits(adapted), plain)
    adapted.module.merge_adapter()
    assert torch.allclose(logits(adapted), apart, atol=1e-5)
    adapted.module.unmerge_adapter()
    assert torch.equal(logits(adapted), apart)
    assert torch.equal(logits(network), plain)


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


def test_an_adapter_with_nan_is_never_merged():
    adapted = shaken(mixture(), Bounded())
    next(p for name, p in adapted.trainable().items() if "experts" in name).data[2, 0, 0] = math.nan
    with pytest.raises(ValueError, match="NaN"):
        Bounded().merge(adapted)


def test_experts_in_a_form_that_cannot_be_updated_are_refused_in_one_line():
    split, packed = mixture(), mixture()
    split.module.model.layers[1].mlp.experts._is_expert_parallel = True
    experts = packed.module.model.layers[0].mlp.experts
    experts.gate_up_proj = torch.nn.Parameter(experts.gate_up_proj.to(torch.int8), requires_grad=False)
    for network, block in ((split, 1), (packed, 0)):
        for adapter in (Bounded(), LoRA(targets="all")):
            with pytest.raises(
                ModelRefused, match=rf"1 of 2 blocks.*layers\.{block}\.mlp\.experts.*attention.*Full\(\)"
            ):
                adapter.insert(network, REQUEST)
        assert LoRA(targets="attention").insert(network, REQUEST).trainable()
    with pytest.raises(ModelRefused, match=r"Fila: MixtralForCausalLM has fused experts.*LoRA\("):
        Fila().insert(mixture(), REQUEST)


def test_experts_that_are_a_list_of_plain_layers_are_adapted_as_plain_layers():
    class Listed(torch.nn.Module):
        """A mixture as older code has it: every expert reads every token, by its share."""

        def __init__(self, config):
            super().__init__()
            self.experts = torch.nn.ModuleList(LlamaMLP(config) for _ in range(3))
            self.router = torch.nn.Linear(config.hidden_size, 3, bias=False)

        def forward(self, states):
            shares = self.router(states).softmax(-1)
            return sum(shares[..., k, None] * expert(states) for k, expert in enumerate(self.experts))

    config = LlamaConfig(**{key: value for key, value in SHAPE.items() if key != "num_experts_per_tok"})
    module = AutoModelForCausalLM.from_config(config).eval().requires_grad_(False)
    for layer in module.model.layers:
        layer.mlp = Listed(config).requires_grad_(False)
    network = LanguageModel.of(module, None)
    adapted = shaken(network, Bounded())
    assert len(choose_layers(module, "mlp")) == 2 * 3 * 3  # and the router, a linear layer too, stays
    assert not any(isinstance(part, BoundedExperts) for part in adapted.module.modules())
    assert torch.allclose(logits(Bounded().merge(adapted)), logits(adapted), atol=1e-5)
