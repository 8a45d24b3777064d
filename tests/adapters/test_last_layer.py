"""Only the last layer moves: hidden states stay to the bit, a tied input embedding stays, and folders are read back."""

from types import SimpleNamespace

import pytest
import torch
from torch import nn
from transformers import AutoModelForCausalLM, GPT2Config, GPT2LMHeadModel, ViTConfig, ViTForImageClassification

from expunge.adapters.last_layer import LastLayer
from expunge.core.model import Network
from expunge.core.question import HiddenStates, Scores
from expunge.core.request import Request
from expunge.data.images import Picture
from expunge.data.text import Passage
from expunge.errors import ModelRefused
from expunge.models.language import LanguageModel
from expunge.models.vision import ImageClassifier

torch.set_num_threads(1)

PICTURES = tuple(Picture(f"{k}", torch.linspace(-1, 1 + k, 192).view(3, 8, 8), k % 4, f"{k}") for k in range(4))
TEXTS = tuple(Passage(f"{k}", (5, 6, 7 + k, 8), 2, "", f"{k}") for k in range(4))


def vit() -> ImageClassifier:
    torch.manual_seed(0)
    shape = dict(hidden_size=16, num_hidden_layers=2, num_attention_heads=2, intermediate_size=24, num_labels=4)
    return ImageClassifier.of(ViTForImageClassification(ViTConfig(**shape, image_size=8, patch_size=4)).eval(), None)


def gpt2() -> LanguageModel:
    torch.manual_seed(0)
    config = GPT2Config(vocab_size=20, n_embd=16, n_layer=2, n_head=2, n_positions=16, eos_token_id=0, bos_token_id=0)
    return LanguageModel.of(GPT2LMHeadModel(config).eval(), None)


def pushed(adapted: Network, by: float = 0.5) -> Network:
    with torch.no_grad():
        for parameter in adapted.trainable().values():
            parameter += by
    return adapted


def test_a_weight_is_what_it_was_plus_what_was_learnt():
    network = vit()
    adapted = pushed(LastLayer().insert(network, Request(PICTURES)))
    assert sorted(p.numel() for p in adapted.trainable().values()) == [4, 4 * 16]
    merged = LastLayer().merge(adapted)
    was, now = network.module.classifier, merged.module.classifier
    assert type(now) is nn.Linear
    assert torch.equal(now.weight, was.weight + 0.5)
    assert torch.equal(now.bias, was.bias + 0.5)


@pytest.mark.parametrize(("network", "examples"), [(vit(), PICTURES), (gpt2(), TEXTS)], ids=["vit", "gpt2"])
def test_hidden_states_stay_to_the_bit_while_answers_move(network, examples):
    adapted = LastLayer().insert(network, Request(examples))
    with torch.no_grad():
        for parameter in adapted.trainable().values():
            parameter += torch.randn(parameter.shape, generator=torch.Generator().manual_seed(0))
    merged = LastLayer().merge(adapted)
    for layer in (0, 1):
        assert torch.equal(
            merged.ask(HiddenStates(layer), examples).states, network.ask(HiddenStates(layer), examples).states
        )
    assert not torch.allclose(merged.ask(Scores(), examples).logits, network.ask(Scores(), examples).logits, atol=1e-3)


def test_an_output_embedding_that_was_the_input_embedding_too_becomes_one_of_its_own(tmp_path):
    network = gpt2()
    module = network.module
    assert module.lm_head.weight is module.transformer.wte.weight
    before = module.transformer.wte.weight.clone()
    adapted = LastLayer().insert(network, Request(TEXTS))
    with torch.no_grad():
        next(iter(adapted.trainable().values()))[7] += 1.0  # token 7 alone
    merged = LastLayer().merge(adapted)
    assert torch.equal(merged.module.transformer.wte.weight, before)
    assert torch.equal(merged.module.lm_head.weight[7], before[7] + 1.0)
    assert module.config.tie_word_embeddings
    merged.module.save_pretrained(tmp_path)
    read = AutoModelForCausalLM.from_pretrained(tmp_path).eval()
    tokens = torch.tensor([[5, 6, 7]])
    assert torch.equal(read(tokens).logits, merged.module(tokens).logits)


def test_a_network_whose_scores_come_from_no_linear_layer_is_refused():
    class Convolved(nn.Module):
        config = SimpleNamespace(num_labels=4)

        def __init__(self) -> None:
            super().__init__()
            self.scores = nn.Conv2d(3, 4, 8)

    with pytest.raises(
        ModelRefused, match=r"Convolved does not compute its class scores by a linear layer .* adapter=Full\(\)"
    ):
        LastLayer().insert(ImageClassifier.of(Convolved(), None), Request(PICTURES))
