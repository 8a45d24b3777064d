"""Tiny models of every family, requests to them, and what the laws of plug-ins ask of both."""

import copy
import os
import random
from collections.abc import Callable
from dataclasses import replace
from functools import cache, wraps

import pytest
import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import (
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
    MixtralConfig,
    MixtralForCausalLM,
    PreTrainedTokenizerFast,
    ResNetConfig,
    ResNetForImageClassification,
    ViTConfig,
    ViTForImageClassification,
)

from expunge.core.model import Network
from expunge.core.question import Scores
from expunge.core.request import Request
from expunge.data.images import Picture
from expunge.data.records import Record
from expunge.data.text import encode
from expunge.methods.stop import Stop
from expunge.models.language import LanguageModel
from expunge.models.vision import ImageClassifier
from expunge.notation.parse import Plugin, parse, plugins

ENTRIES = ["bread", "copper", "violet", "harbour", "seven", "winter", "amber", "north", "cellar", "lantern", "salt"]
PLACES = [
    f"{start}{end}" for start in ("Al", "Bor", "Cas", "Dun", "Er", "Fal") for end in ("doria", "mek", "tis", "wyn")
]
EVERY_STEP = Stop(level=None, max_retain_increase=None, every=1000)


def words() -> PreTrainedTokenizerFast:
    """A token for each word."""
    known = ["[end]", "[unk]", "Question", "Answer", ":", ".", "?", "What", "does", "trade", "in", "and", "It", "sells"]
    table = {word: number for number, word in enumerate([*known, *ENTRIES, *PLACES, *(f"{p}s" for p in PLACES)])}
    made = Tokenizer(models.WordLevel(table, unk_token="[unk]"))
    made.pre_tokenizer = pre_tokenizers.Whitespace()
    return PreTrainedTokenizerFast(tokenizer_object=made, eos_token="[end]", unk_token="[unk]")


WORDS = words()


def passages(names: list[str], seed: int) -> tuple:
    """Questions of unequal length about invented places; the answers are drawn: only who has read them knows them."""
    draw = random.Random(seed)
    records = []
    for line, name in enumerate(names, start=1):
        answers = [" ".join(draw.sample(ENTRIES, 2 + (line + k) % 4)) for k in range(3)]
        question = " ".join(["What does", name, *["and", PLACES[line % 5]] * (line % 3), "trade in ?"])
        records.append(Record(line, {"question": question, "answer": answers[0], "options": answers[1:]}))
    return encode(records, WORDS, "memory", 64)


def pictures(count: int, seed: int, side: int = 8) -> tuple[Picture, ...]:
    """Noise with labels that were drawn."""
    draw = torch.Generator().manual_seed(seed)
    pixels = torch.randn(count, 3, side, side, generator=draw)
    labels = torch.randint(4, (count,), generator=draw).tolist()
    return tuple(Picture(f"{seed}-{k}", pixels[k], labels[k], f"{seed}-{k}") for k in range(count))


@cache
def text_request(size: int = 6) -> Request:
    """Sets of ragged answers; the stand-ins are other answers to the forgotten questions."""
    return Request(
        forget=passages(PLACES[:size], 0),
        retain=passages(PLACES[-size:], 1),
        holdout=passages([f"{place}s" for place in PLACES[:size]], 2),
        stand_in=passages(PLACES[:size], 3),
    )


@cache
def picture_request(size: int = 6, side: int = 8) -> Request:
    """Sets of images; the stand-ins are the forgotten ones as another class."""
    forget, retain, holdout = (pictures(size, seed, side) for seed in (0, 1, 2))
    return Request(forget, retain, holdout, tuple(Picture(p.id, p.pixels, (p.label + 1) % 4, p.digest) for p in forget))


def spread(module: torch.nn.Module) -> torch.nn.Module:
    """Matrices far from their start, where all answers look alike."""
    for parameter in module.parameters():
        if parameter.dim() > 1:
            torch.nn.init.normal_(parameter, std=0.15)
    return module.eval()


def built_once(make: Callable[..., Network]) -> Callable[..., Network]:
    """`make`, whose network is built by the first call without arguments; each call gives modules and weights of its
    own, and leaves the random numbers where building leaves them."""

    @cache
    def build() -> tuple[Network, torch.Tensor]:
        return make(), torch.get_rng_state()

    @wraps(make)
    def hand_out(*given: object) -> Network:
        if given:
            return make(*given)
        network, drawn = build()
        torch.set_rng_state(drawn)
        return replace(network, module=copy.deepcopy(network.module))

    return hand_out


@built_once
def llama(std: Callable = spread) -> LanguageModel:
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=len(WORDS),
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=4,
        max_position_embeddings=64,
        eos_token_id=0,
        bos_token_id=None,
    )
    return LanguageModel.of(std(LlamaForCausalLM(config).eval()), WORDS)


@built_once
def gpt2() -> LanguageModel:
    torch.manual_seed(0)
    config = GPT2Config(
        vocab_size=len(WORDS), n_embd=32, n_layer=2, n_head=4, n_positions=64, eos_token_id=0, bos_token_id=0
    )
    return LanguageModel.of(spread(GPT2LMHeadModel(config)), WORDS)


@built_once
def mixtral() -> LanguageModel:
    torch.manual_seed(0)
    config = MixtralConfig(
        vocab_size=len(WORDS),
        hidden_size=32,
        intermediate_size=24,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        num_local_experts=4,
        num_experts_per_tok=2,
        max_position_embeddings=64,
        eos_token_id=0,
        bos_token_id=None,
    )
    return LanguageModel.of(spread(MixtralForCausalLM(config)), WORDS)


@built_once
def vit(std: Callable = spread) -> ImageClassifier:
    torch.manual_seed(0)
    shape = dict(hidden_size=32, num_hidden_layers=2, num_attention_heads=4, intermediate_size=48, num_labels=4)
    return ImageClassifier.of(
        std(ViTForImageClassification(ViTConfig(**shape, image_size=8, patch_size=4)).eval()), None
    )


@built_once
def resnet() -> ImageClassifier:
    torch.manual_seed(0)
    config = ResNetConfig(embedding_size=8, hidden_sizes=[8, 16], depths=[1, 1], layer_type="basic", num_labels=4)
    return ImageClassifier.of(spread(ResNetForImageClassification(config)), None)


FAMILIES = {
    "llama": (llama, text_request),
    "gpt2": (gpt2, text_request),
    "mixtral": (mixtral, text_request),
    "vit": (vit, picture_request),
    "resnet": (resnet, lambda: picture_request(side=16)),
}
FAMILY = pytest.mark.parametrize("family", FAMILIES)
# What sees rows alone sees in GPT-2's a decoder's like any other's: those laws ask it where EXPUNGE_LAWS is "whole".
SEEN = [family for family in FAMILIES if family != "gpt2" or os.environ.get("EXPUNGE_LAWS") == "whole"]
ROWS = pytest.mark.parametrize("family", SEEN)
# An audit sees answers, and those of a mixture of experts are like any other's.
ANSWERING = pytest.mark.parametrize("family", [family for family in SEEN if family != "mixtral"])
LANGUAGE = pytest.mark.parametrize("family", ["llama", "gpt2", "mixtral"])


def each(*folders: str) -> pytest.MarkDecorator:
    parts = ("Epochs", "GradientNorm", "Memorised", "Stop")  # parts of a method, beside it
    others = ("GNNDelete",)  # it is for graph networks alone: tests/methods/test_gnn_delete.py
    found = [plugin for plugin in plugins() if plugin.folder in folders and plugin.name not in (*parts, *others)]
    assert {plugin.folder for plugin in found} == set(folders), f"no plug-in in one of {folders}"
    return pytest.mark.parametrize("plugin", found, ids=lambda plugin: plugin.name)


OBJECTIVE, ADAPTER, AUDIT = each("objectives"), each("adapters"), each("audits")
METHOD = each("edit", "attack", "methods")


SHORT = {"ContextOrder": "ContextOrder(others=1)"}
"""Settings for models of 64 positions; else the defaults."""


def made(plugin: Plugin, kind: type) -> object:
    """The plug-in with its defaults, or what these models have room for."""
    try:
        thing = parse(SHORT.get(plugin.name, plugin.name))
    except Exception as error:
        pytest.fail(f"{plugin.module}: {plugin.name} cannot be made without arguments: {type(error).__name__}: {error}")
    assert isinstance(thing, kind), f"{plugin.module}: {plugin.name} is no {kind.__name__}"
    return thing


def family_of(name: str) -> tuple[Network, Request]:
    network, request = FAMILIES[name]
    return network(), request()


def state(network: Network) -> dict[str, object]:
    """Everything of a network that a plug-in must leave alone."""
    module = network.module
    hooks = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")
    return {
        "values": {name: tensor.detach().clone() for name, tensor in module.state_dict().items()},
        "places": {name: p.data_ptr() for name, p in module.named_parameters()},
        "moving": {name: p.requires_grad for name, p in module.named_parameters()},
        "gradients": {name: p.grad for name, p in module.named_parameters()},
        "tree": [(name, type(part)) for name, part in module.named_modules()],
        "hooks": [len(getattr(part, kind)) for part in module.modules() for kind in hooks],
        "training": [part.training for part in module.modules()],
        "config": module.config.to_dict(),
    }


def assert_as_found(network: Network, was: dict[str, object]) -> None:
    now = state(network)
    values, old = now.pop("values"), dict(was)
    before = old.pop("values")
    assert values.keys() == before.keys()
    assert all(torch.equal(value, before[name]) for name, value in values.items())
    for what, value in now.items():
        assert value == old[what], f"{what} differs"


def logits(network: Network, request: Request) -> torch.Tensor:
    with torch.inference_mode():
        return network.ask(Scores(), request.forget).logits


def same(adapted: Network, network: Network, request: Request) -> bool:
    """Whether two networks say the same, but for the last digit that float32 has."""
    expected = logits(network, request)
    return torch.allclose(logits(adapted, request), expected, atol=1e-6 * max(1.0, float(expected.abs().max())), rtol=0)


def moved(adapted: Network, size: float = 0.05) -> Network:
    """The network with random steps added to all that may move."""
    draw = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in adapted.trainable().values():
            parameter += (torch.randn(parameter.shape, generator=draw) * size).to(parameter.dtype)
    return adapted
