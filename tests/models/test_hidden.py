"""Hidden states are those that the library itself reports, and nothing above the block is run, grown or changed."""

from collections.abc import Callable

import pytest
import torch
from peft import LoraConfig, get_peft_model
from transformers import (
    Gemma3ForCausalLM,
    Gemma3TextConfig,
    GPT2Config,
    GPT2LMHeadModel,
    GPTNeoConfig,
    GPTNeoForCausalLM,
    LlamaConfig,
    LlamaForCausalLM,
    ResNetConfig,
    ResNetForImageClassification,
    SwinConfig,
    SwinForImageClassification,
    ViTConfig,
    ViTForImageClassification,
)

from expunge.adapters.bounded import Bounded
from expunge.core.predictions import Share
from expunge.core.question import HiddenStates, Scores
from expunge.core.request import Request
from expunge.core.view import View
from expunge.data.images import Picture
from expunge.data.text import Passage
from expunge.errors import ModelRefused, UsageRefused
from expunge.internals.blocks import blocks
from expunge.models.language import LanguageModel
from expunge.models.vision import ImageClassifier

torch.set_num_threads(1)

V = 40
SHAPE = dict(
    vocab_size=V, hidden_size=16, intermediate_size=24, num_hidden_layers=4, num_attention_heads=4, eos_token_id=0
)
MODULES: dict[str, Callable] = {
    "llama": lambda: LlamaForCausalLM(LlamaConfig(**SHAPE, max_position_embeddings=64)),
    "gemma3": lambda: Gemma3ForCausalLM(
        Gemma3TextConfig(**SHAPE, num_key_value_heads=2, head_dim=8, max_position_embeddings=64)
    ),
    "gpt2": lambda: GPT2LMHeadModel(
        GPT2Config(vocab_size=V, n_embd=16, n_layer=4, n_head=4, n_positions=64, eos_token_id=0, bos_token_id=0)
    ),
    "gpt_neo": lambda: GPTNeoForCausalLM(
        GPTNeoConfig(
            vocab_size=V,
            hidden_size=16,
            num_layers=4,
            num_heads=4,
            attention_types=[[["global", "local"], 2]],
            window_size=4,
            max_position_embeddings=64,
            bos_token_id=0,
            eos_token_id=0,
        )
    ),
}
LANGUAGE = pytest.mark.parametrize("name", MODULES)


def language(name: str) -> LanguageModel:
    torch.manual_seed(0)
    module = MODULES[name]().eval()
    for parameter in module.parameters():
        if parameter.dim() > 1:
            torch.nn.init.normal_(parameter, std=0.2)
    return LanguageModel.of(module.double(), None)


def passages() -> tuple[Passage, ...]:
    """Five texts of 4 to 8 tokens; all begin alike, so they share nodes of a tree."""
    draw = torch.Generator().manual_seed(1)
    tails = [torch.randint(1, V, (2 + k,), generator=draw).tolist() for k in range(5)]
    return tuple(Passage(f"p{k}", (3, 4, *tail), 2, "", "") for k, tail in enumerate(tails))


def vit() -> ImageClassifier:
    torch.manual_seed(0)
    shape = dict(hidden_size=16, num_hidden_layers=3, num_attention_heads=4, intermediate_size=24, num_labels=4)
    module = ViTForImageClassification(ViTConfig(**shape, image_size=8, patch_size=4)).eval().double()
    return ImageClassifier.of(module, None)


def pictures(side: int = 8) -> tuple[Picture, ...]:
    draw = torch.Generator().manual_seed(0)
    return tuple(Picture(str(k), torch.randn(3, side, side, generator=draw), k % 4, str(k)) for k in range(4))


@LANGUAGE
@pytest.mark.parametrize("layer", [0, 2])
def test_a_row_gets_the_state_that_its_library_reports_where_it_is_predicted(name: str, layer: int):
    network, batch = language(name), passages()
    felt = network.ask(HiddenStates(layer), batch)
    assert felt.labels.tolist() == [token for e in batch for token in e.tokens[e.first :]]
    assert felt.counts().tolist() == [2, 3, 4, 5, 6]
    with torch.no_grad():
        for example, states in zip(batch, felt.split(felt.states), strict=True):
            read = network.module(input_ids=torch.tensor([example.tokens]), output_hidden_states=True)
            wanted = read.hidden_states[layer + 1][0, example.first - 1 : -1]
            assert torch.allclose(states, wanted, atol=1e-10, rtol=0)


@LANGUAGE
def test_trees_and_padded_batches_feel_the_same(name: str):
    network, batch = language(name), passages()
    assert (network.trees == 0) == (name == "gpt_neo")
    padded = LanguageModel(network.module, None, 0, network.headed).ask(HiddenStates(1), batch)
    assert torch.allclose(network.ask(HiddenStates(1), batch).states, padded.states, atol=1e-10, rtol=0)


def test_an_image_gets_its_class_tokens_state():
    network, batch = vit(), pictures()
    felt = network.ask(HiddenStates(1), batch)
    pixels = torch.stack([example.pixels for example in batch]).double()
    with torch.no_grad():
        wanted = network.module(pixel_values=pixels, output_hidden_states=True).hidden_states[2][:, 0]
    assert torch.allclose(felt.states, wanted, atol=1e-12, rtol=0)
    assert felt.labels.tolist() == [0, 1, 2, 3]


@LANGUAGE
def test_nothing_above_the_block_is_run_or_gets_a_gradient(name: str):
    network = language(name)
    ran = []
    for number, block in enumerate(blocks(network.module).values()):
        block.register_forward_pre_hook(lambda _module, _inputs, number=number: ran.append(number))
    felt = network.ask(HiddenStates(1), passages())
    assert ran == [0, 1]
    felt.states.square().sum().backward()
    above = [p for block in list(blocks(network.module).values())[2:] for p in block.parameters()]
    below = [p for block in list(blocks(network.module).values())[:2] for p in block.parameters()]
    assert all(p.grad is None for p in above)
    assert any(p.grad is not None and p.grad.any() for p in below)
    if not network.module.config.tie_word_embeddings:
        assert network.module.get_output_embeddings().weight.grad is None


@LANGUAGE
def test_the_network_answers_afterwards_as_before_and_keeps_no_hook(name: str):
    network, batch = language(name), passages()
    with torch.no_grad():
        before = network.ask(Scores(), batch).logits
        network.ask(HiddenStates(1), batch)
        assert torch.equal(network.ask(Scores(), batch).logits, before)
        assert torch.equal(network.ask(Scores(), batch).logits, before)
    assert not any(part._forward_hooks for part in network.module.modules())


@pytest.mark.parametrize("name", ["llama", "gpt2"])
def test_states_are_read_through_adapters(name: str):
    network, batch = language(name), passages()
    plain = network.ask(HiddenStates(2), batch).states
    bounded = Bounded(rank=2).insert(network, Request(forget=batch))
    assert torch.allclose(bounded.ask(HiddenStates(2), batch).states, plain, atol=1e-6, rtol=0)
    config = LoraConfig(r=2, target_modules="all-linear", init_lora_weights=False, fan_in_fan_out=name == "gpt2")
    moved = LanguageModel(get_peft_model(network.fork().module, config), None, network.trees, network.headed)
    felt = moved.ask(HiddenStates(1), batch).states
    assert not torch.allclose(felt, network.ask(HiddenStates(1), batch).states, atol=1e-3)
    felt.sum().backward()
    gradients = {name: p.grad for name, p in moved.module.named_parameters() if p.requires_grad}
    reached = {int(name.split(".h." if ".h." in name else ".layers.")[1].split(".")[0]) for name in gradients}
    assert reached == {0, 1, 2, 3}
    for key, gradient in gradients.items():
        above = int(key.split(".h." if ".h." in key else ".layers.")[1].split(".")[0]) > 1
        assert (gradient is None) == above, key


def test_a_layer_below_one_is_a_share_of_the_depth():
    network, batch = language("llama"), passages()  # 4 blocks: 4 * 7 / 32 is in the first, 0.75 * 4 = 3
    for share, number in ((7 / 32, 0), (0.75, 3)):
        states = network.ask(HiddenStates(share), batch).states
        assert torch.equal(states, network.ask(HiddenStates(number), batch).states)


@pytest.mark.parametrize("layer", [-1, 4])
def test_a_layer_that_is_not_there_is_refused(layer: int):
    with pytest.raises(UsageRefused, match=rf"The `layer` must be a block number from 0 to 3, .* Got {layer}"):
        language("llama").ask(HiddenStates(layer), passages())


def test_an_architecture_without_blocks_or_without_a_class_token_is_refused_in_one_line():
    config = ResNetConfig(embedding_size=8, hidden_sizes=[8, 16], depths=[1, 1], layer_type="basic", num_labels=4)
    with pytest.raises(ModelRefused, match="ResNetForImageClassification has no transformer blocks"):
        ImageClassifier.of(ResNetForImageClassification(config), None).ask(HiddenStates(0.75), pictures(16))
    config = SwinConfig(image_size=16, patch_size=4, embed_dim=8, depths=[1, 1], num_heads=[2, 2], window_size=2)
    with pytest.raises(ModelRefused, match="SwinForImageClassification has no class token"):
        ImageClassifier.of(SwinForImageClassification(config), None).ask(HiddenStates(0.75), pictures(16))


def test_a_view_reads_a_layer_once_counts_its_share_and_keeps_gradients_from_before():
    network, batch = language("llama"), passages()
    now = View(network, {"forget": batch}, {"forget": Share(rows=99, examples=9)})
    felt = now.hidden_states("forget", 1)
    assert now.hidden_states("forget", 1) is felt
    assert now.hidden_states("forget", 0) is not felt
    assert set(now.replies) == {("forget", HiddenStates(1)), ("forget", HiddenStates(0))}
    assert now.scores_so_far == {}
    assert felt.over_rows(torch.ones(20)).item() == pytest.approx(20 / 99)
    assert felt.states.requires_grad
    before = View(network, {"forget": batch}, gradients=False)
    assert not before.hidden_states("forget", 1).states.requires_grad
