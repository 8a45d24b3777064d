"""Blocks are found by structure in every kind of network, and of each only the layers that are meant are adapted."""

import functools

import pytest
import torch
import transformers
from torch import nn
from transformers import (
    AutoModelForImageClassification,
    BeitConfig,
    CLIPConfig,
    CLIPModel,
    SwinConfig,
    T5Config,
    T5ForConditionalGeneration,
    ViTConfig,
)

from expunge.adapters._layers import choose_layers, kinds
from expunge.adapters.bounded import Bounded
from expunge.adapters.lora import LoRA
from expunge.errors import ModelRefused, UsageRefused
from expunge.internals.blocks import blocks, every_block
from expunge.models.language import LanguageModel
from tests.architectures import CAUSAL, build
from tests.block_table import PAGE, REQUEST, adapted_layers, check, page

torch.set_num_threads(1)

FAST = [
    *("llama", "gpt2", "opt", "falcon", "bloom", "bert", "xlm", "gemma3", "gemma3n_text"),
    *("mixtral", "qwen2_moe", "phimoe", "afmoe", "zaya", "deepseek_v3"),
    *("qwen3_next", "qwen3_5_text", "lfm2_moe", "jamba", "bamba", "falcon_h1", "granitemoehybrid", "recurrent_gemma"),
    *("nemotron_h", "olmo_hybrid", "rwkv", "xlstm", "mamba", "mamba2"),
]
REFUSED = {
    "zamba2": "share their weights",
    "dbrx": "4 of 4 blocks.*experts",
}
SMALL = {"hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2, "num_attention_heads": 4}
IMAGE = {"image_size": 8, "patch_size": 2}


row = functools.cache(check)


@pytest.mark.parametrize("name", FAST)
def test_each_block_with_an_mlp_has_its_adapter_and_no_router_has(name):
    assert row(name).right, row(name)


@pytest.mark.parametrize("name", REFUSED)
def test_what_cannot_be_adapted_right_is_refused_in_one_line(name):
    with pytest.raises(ModelRefused, match=REFUSED[name]) as refused:
        choose_layers(build(name, "meta"), "mlp")
    assert "\n" not in str(refused.value)
    assert "Full()" in str(refused.value)


def test_the_page_holds_every_architecture_and_says_what_the_code_does():
    text = PAGE.read_text(encoding="utf-8")
    written = {line.split(" | ")[0].removeprefix("| "): line for line in text.splitlines() if line.startswith("| ")}
    assert "WRONG" not in text
    if f"transformers {transformers.__version__}," not in text:
        pytest.skip("written with another transformers")
    assert set(CAUSAL) == written.keys() - {"architecture"}
    assert {name: str(row(name)) for name in FAST} == {name: written[name] for name in FAST}
    assert text.startswith(page([]).partition("**")[0])


LINES = {
    "llama": ["mlp.gate_proj", "mlp.up_proj", "mlp.down_proj"],
    "gpt2": ["mlp.c_fc", "mlp.c_proj"],
    "opt": ["fc1", "fc2"],
}


@pytest.mark.parametrize(
    ("name", "at"), [("llama", "model.layers"), ("gpt2", "transformer.h"), ("opt", "model.decoder.layers")]
)
def test_a_language_models_mlp_layers_come_block_by_block_in_the_order_of_its_modules(name, at):
    assert choose_layers(build(name, "meta"), "mlp") == [
        f"{at}.{block}.{layer}" for block in range(4) for layer in LINES[name]
    ]


def test_a_mixtures_linear_layers_come_before_its_stacks_of_experts():
    experts = [f"model.layers.{block}.mlp.experts" for block in range(4)]
    assert choose_layers(build("mixtral", "meta"), "mlp") == experts
    attention = [f"model.layers.{b}.self_attn.{x}_proj" for b in range(4) for x in "qkvo"]
    assert choose_layers(build("mixtral", "meta"), "all") == attention + experts


def test_vision_transformers_keep_their_blocks_and_layers():
    vit = AutoModelForImageClassification.from_config(ViTConfig(**SMALL, **IMAGE))
    beit = AutoModelForImageClassification.from_config(BeitConfig(**SMALL, **IMAGE))
    swin = AutoModelForImageClassification.from_config(
        SwinConfig(**IMAGE, embed_dim=8, depths=[1, 2], num_heads=[1, 2], window_size=2)
    )
    for module in (vit, beit):
        names = choose_layers(module, "mlp")
        assert names == [f"{block}.{layer}" for block in blocks(module) for layer in ("mlp.fc1", "mlp.fc2")]
        assert len(names) == 2 * 2
    assert list(blocks(swin)) == ["swin.encoder.layers.0", "swin.encoder.layers.1"]  # its stages
    assert [name.removeprefix("swin.encoder.layers.") for name in choose_layers(swin, "mlp")] == [
        *("0.blocks.0.mlp.fc1", "0.blocks.0.mlp.fc2", "0.downsample.reduction"),
        *(f"1.blocks.{block}.mlp.{layer}" for block in (0, 1) for layer in ("fc1", "fc2")),
    ]


def test_attention_is_whatever_mixes_tokens():
    layers = choose_layers(build("jamba", "meta"), "attention")
    assert [layer.removeprefix("model.layers.") for layer in layers] == [
        *(f"{block}.mamba.{layer}" for block in (0, 1) for layer in ("in_proj", "x_proj", "out_proj")),
        *(f"2.self_attn.{x}_proj" for x in "qkvo"),
        *(f"3.mamba.{layer}" for layer in ("in_proj", "x_proj", "out_proj")),
    ]
    assert set(kinds(build("rwkv", "meta")).values()) == {
        "attention",
        "mlp",
    }  # its feed-forward has a state, yet mixes little


def test_a_state_space_model_whose_blocks_have_no_mlp_is_adapted_in_its_mixers():
    module = build("mamba").requires_grad_(False)
    for targets in ("mlp", "attention", "all"):
        adapted = LoRA(targets=targets).insert(LanguageModel(module, None), REQUEST)
        names = {name.partition(".lora")[0].rpartition(".")[2] for name in adapted.trainable()}
        assert names == {"in_proj"}  # the others' matrices are handed to a kernel, past any adapter


@pytest.mark.parametrize(
    ("name", "router"),
    [
        ("phimoe", "mlp.router"),
        ("qwen2_moe", "mlp.shared_expert_gate"),
        ("zaya", "mlp.gate"),
        ("afmoe", "mlp.router"),
        ("hunyuan_v1_moe", "mlp.gate"),
        ("jetmoe", "self_attention.experts.router"),
        ("gemma3n_text", "altup.modality_router"),
    ],
)
@pytest.mark.parametrize("targets", ["mlp", "attention", "all"])
def test_a_router_of_linear_layers_is_never_adapted(name, router, targets):
    module = build(name, "meta")
    assert any(f".{router}." in f"{layer}." for layer in kinds(module))
    if name == "jetmoe" and targets != "attention":
        return
    assert not any(f".{router}." in f"{layer}." for layer in choose_layers(module, targets))


def test_a_block_of_a_hybrid_may_have_no_mlp_but_cannot_be_asked_for():
    module = build("nemotron_h", "meta")  # a Mamba mixer, a mixture, attention, an MLP
    assert choose_layers(module, "mlp", [1, 3]) == choose_layers(module, "mlp")
    with pytest.raises(UsageRefused, match="block 2 has no mlp linear layer"):
        choose_layers(module, "mlp", [1, 2])


def test_a_block_that_lost_its_mlp_is_refused_in_a_hybrid_too():
    module = build("jamba", "meta")
    module.model.layers[3].feed_forward = nn.Identity()
    with pytest.raises(ModelRefused, match=r"1 of 4 blocks.*model\.layers\.3"):
        choose_layers(module, "mlp")


def towers_of_two():
    clip = CLIPModel(CLIPConfig(text_config={**SMALL, "vocab_size": 40}, vision_config={**SMALL, **IMAGE}))
    t5 = T5ForConditionalGeneration(T5Config(vocab_size=40, d_model=16, d_kv=4, d_ff=24, num_layers=2, num_heads=4))
    return {"clip": (clip, "text_model", "vision_model"), "t5": (t5, "encoder", "decoder")}


@pytest.mark.parametrize("name", ["clip", "t5"])
def test_where_two_towers_could_be_meant_the_choices_are_named_and_part_chooses(name):
    module, *choices = towers_of_two()[name]
    with pytest.raises(ModelRefused, match=f"part='{choices[0]}' or '{choices[1]}'") as refused:
        blocks(module)
    assert "\n" not in str(refused.value)
    for choice in choices:
        assert len(blocks(module, choice)) == 2
        layers = choose_layers(module, "mlp", None, choice)
        assert len(layers) == 2 * 2
        assert all(f".{choice}." in f".{layer}" for layer in layers)
    assert len(every_block(module)) == 4
    with pytest.raises(UsageRefused, match=f"'{choices[0]}', '{choices[1]}'. Got 'middle'"):
        choose_layers(module, "mlp", None, "middle")


def test_without_part_the_tower_behind_the_class_scores_is_taken():
    module = build("gemma3").requires_grad_(False)
    assert {name.rpartition(".")[0] for name in blocks(module)} == {"model.language_model.layers"}
    assert {name.rpartition(".")[0] for name in blocks(build("gemma3", "meta"))} == {"model.language_model.layers"}
    adapted = {
        part: adapted_layers(Bounded(part=part).insert(LanguageModel(module, None), REQUEST))
        for part in (None, "language_model", "vision_tower")
    }
    assert adapted[None].keys() == adapted["language_model"].keys()
    assert all("vision_tower" in layer for layer in adapted["vision_tower"])


def test_a_tower_that_is_run_but_whose_states_reach_no_score_is_not_meant():
    class TwoHeads(nn.Module):
        main_input_name = "input_ids"

        def __init__(self):
            super().__init__()
            self.embedding = nn.Embedding(5, 4)
            self.main, self.aside = (nn.ModuleDict({"layers": nn.ModuleList(map(Part, range(2)))}) for _ in range(2))

        def forward(self, input_ids, **_):
            states = self.embedding(input_ids)
            aside = states
            for one, other in zip(self.main["layers"], self.aside["layers"], strict=True):
                states, aside = one(states), other(aside)
            return transformers.utils.ModelOutput(logits=states, guesses=aside)

    class Part(nn.Module):
        def __init__(self, _):
            super().__init__()
            self.linear = nn.Linear(4, 4)

        def forward(self, states):
            return self.linear(states)

    assert list(blocks(TwoHeads().requires_grad_(False))) == ["main.layers.0", "main.layers.1"]


def test_lists_of_bare_layers_and_of_parts_without_a_matrix_are_no_blocks():
    class Embedded(nn.Module):
        def __init__(self):
            super().__init__()
            self.convolution, self.token = nn.Conv2d(3, 4, 2), nn.Parameter(torch.zeros(1, 1, 4))

    module = nn.Module()
    module.heads = nn.ModuleList(nn.Linear(4, 4) for _ in range(3))
    module.embeddings = nn.ModuleList(Embedded() for _ in range(2))
    assert blocks(module) == {}
    stage = [nn.ModuleList(nn.Sequential(nn.Linear(4, 4)) for _ in range(2)) for _ in range(2)]
    module.stages = nn.ModuleList(stage)
    assert list(blocks(module)) == ["stages.0.0", "stages.0.1", "stages.1.0", "stages.1.1"]
