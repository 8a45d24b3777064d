"""The MLP layers of every supported architecture are found by structure, and nothing is matched silently."""

import pytest
import torch
from transformers import (
    AutoModelForCausalLM,
    AutoModelForImageClassification,
    DeiTConfig,
    Gemma2Config,
    Gemma3TextConfig,
    GemmaConfig,
    GPT2Config,
    GPTNeoConfig,
    GPTNeoXConfig,
    LlamaConfig,
    MistralConfig,
    OPTConfig,
    PhiConfig,
    Qwen2Config,
    Qwen3Config,
    ResNetConfig,
    ViTConfig,
)

from expunge.adapters._layers import choose_layers, kind_of, kinds
from expunge.errors import ModelRefused, UsageRefused
from expunge.internals.blocks import blocks

V = 40
SHAPE = {
    "vocab_size": V,
    "hidden_size": 16,
    "intermediate_size": 24,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
}
LANGUAGE = {
    "llama": (LlamaConfig(**SHAPE), {"gate_proj", "up_proj", "down_proj"}),
    "gpt2": (GPT2Config(vocab_size=V, n_embd=16, n_layer=2, n_head=4), {"c_fc", "c_proj"}),
    "gpt_neo": (
        GPTNeoConfig(vocab_size=V, hidden_size=16, num_layers=2, num_heads=4, attention_types=[[["global"], 2]]),
        {"c_fc", "c_proj"},
    ),
    "gpt_neox": (GPTNeoXConfig(**SHAPE), {"dense_h_to_4h", "dense_4h_to_h"}),
    "phi": (PhiConfig(**SHAPE), {"fc1", "fc2"}),
    "qwen2": (Qwen2Config(**SHAPE), {"gate_proj", "up_proj", "down_proj"}),
    "qwen3": (Qwen3Config(**SHAPE, head_dim=4), {"gate_proj", "up_proj", "down_proj"}),
    "opt": (
        OPTConfig(
            vocab_size=V,
            hidden_size=16,
            ffn_dim=24,
            num_hidden_layers=2,
            num_attention_heads=4,
            word_embed_proj_dim=16,
        ),
        {"fc1", "fc2"},
    ),
    "gemma": (GemmaConfig(**SHAPE, head_dim=4), {"gate_proj", "up_proj", "down_proj"}),
    "gemma2": (Gemma2Config(**SHAPE, head_dim=4), {"gate_proj", "up_proj", "down_proj"}),
    "gemma3": (Gemma3TextConfig(**SHAPE, head_dim=4), {"gate_proj", "up_proj", "down_proj"}),
    "mistral": (MistralConfig(**SHAPE, num_key_value_heads=2), {"gate_proj", "up_proj", "down_proj"}),
}
VISION = {
    "vit": ViTConfig(**{k: v for k, v in SHAPE.items() if k != "vocab_size"}, image_size=8, patch_size=2),
    "deit": DeiTConfig(
        **{k: v for k, v in SHAPE.items() if k != "vocab_size"},
        image_size=8,
        patch_size=2,
        architectures=["DeiTForImageClassification"],
    ),
}


@pytest.mark.parametrize("name", LANGUAGE)
def test_a_language_models_mlp_layers_are_found_in_every_block(name):
    config, names = LANGUAGE[name]
    module = AutoModelForCausalLM.from_config(config)
    layers = choose_layers(module, "mlp")
    assert len(blocks(module)) == 2
    assert len(layers) == 2 * len(names)
    assert {layer.rpartition(".")[2] for layer in layers} == names
    assert set(choose_layers(module, "attention")).isdisjoint(layers)
    assert set(choose_layers(module, "all")) == set(layers) | set(choose_layers(module, "attention"))


@pytest.mark.parametrize("name", VISION)
def test_a_vision_transformers_mlp_layers_are_its_two_dense_ones(name):
    module = AutoModelForImageClassification.from_config(VISION[name])
    layers = choose_layers(module, "mlp")
    shapes = sorted(tuple(module.get_submodule(layer).weight.shape) for layer in layers)
    assert shapes == [(16, 24), (16, 24), (24, 16), (24, 16)]
    assert len(choose_layers(module, "attention")) == 2 * 4


def test_a_network_without_blocks_is_refused_with_what_to_do():
    module = AutoModelForImageClassification.from_config(
        ResNetConfig(embedding_size=8, hidden_sizes=[8, 16], depths=[1, 1], layer_type="basic")
    )
    with pytest.raises(ModelRefused, match="no transformer blocks.*Full"):
        choose_layers(module, "mlp")


def test_a_block_without_a_match_is_refused_and_named():
    module = AutoModelForCausalLM.from_config(LANGUAGE["llama"][0])
    module.model.layers[1].mlp = torch.nn.Identity()
    with pytest.raises(ModelRefused, match=r"1 of 2 blocks.*model\.layers\.1"):
        choose_layers(module, "mlp")


def test_targets_and_blocks_that_are_not_there_are_refused():
    module = AutoModelForCausalLM.from_config(LANGUAGE["llama"][0])
    with pytest.raises(UsageRefused, match="targets must be 'mlp', 'attention' or 'all'. Got 'mpl'"):
        choose_layers(module, "mpl")
    for only in ((), (2,), (-1,), (0, 7)):
        with pytest.raises(UsageRefused, match="layers must be blocks, from 0 to 1, or None for all"):
            choose_layers(module, "mlp", only)
    module.model.layers[1].mlp = None
    with pytest.raises(UsageRefused, match="layers: block 1 has no mlp linear layer to adapt"):
        choose_layers(module, "mlp", (0, 1))


def test_parameters_of_an_adapter_belong_to_the_layer_that_they_adapt():
    known = kinds(AutoModelForCausalLM.from_config(LANGUAGE["llama"][0]))
    at = "base_model.model.model.layers.1."
    assert kind_of(f"{at}mlp.up_proj.bounded_A.default", known) == "mlp"
    assert kind_of(f"{at}self_attn.q_proj.lora_A.default.weight", known) == "attention"
    assert kind_of("model.embed_tokens.weight", known) == "other"
