"""Adapters of whole mixtures: silent at the start, merged without a trace, trained, refused."""

import math

import pytest
import torch
from transformers import AutoModelForCausalLM, LlamaConfig
from transformers.models.llama.modeling_llama import LlamaMLP

from expunge.adapters._bounded_experts import BoundedExperts
from expunge.adapters._layers import choose_layers, kind_of, kinds
from expunge.adapters.bounded import Bounded
from expunge.adapters.fila import Fila
from expunge.adapters.lora import LoRA
from expunge.errors import ModelRefused
from expunge.methods.finetune import Finetune
from expunge.methods.stop import Stop
from expunge.models.language import LanguageModel
from tests.adapters.mixtures import (
    CONFIGS,
    EXPERTS,
    INNER,
    KIND,
    ONE_BY_ONE,
    REQUEST,
    SHAPE,
    WIDTH,
    logits,
    mixture,
    shaken,
)

torch.set_num_threads(1)


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
