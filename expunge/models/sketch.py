"""Networks that a configuration describes, made without weights: with sizes alone, or narrow and random."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import replace
from typing import Any, cast

import torch
from torch import Tensor, nn

from expunge.core.model import Batch
from expunge.core.predictions import Rows
from expunge.errors import ModelRefused
from expunge.internals.examples import Tokenized
from expunge.internals.mixtures import mixtures
from expunge.models.language import LanguageModel
from expunge.models.open import family_of
from expunge.models.prefix_tree import Layout
from expunge.models.tree_attention import set_pieces, with_trees
from expunge.models.vision import ImageClassifier

NARROW: dict[str, Any] = {
    "vocab_size": 251,
    "hidden_size": 96,
    "intermediate_size": 212,
    "moe_intermediate_size": 68,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 24,
    "embedding_size": 8,
    "hidden_sizes": [8],
    "depths": [1],
}
"""Widths of the narrow network, where the architecture has one of that name. No batch is likely to have such a size, so
that a tensor's shape tells whether it is as large as a weight, or has a number for each class."""


def sketch(config: Any, dtype: torch.dtype, count: int | None = None) -> nn.Module:
    """The network that a configuration describes, on the meta device; of `count` blocks where that is given."""
    config = copy.deepcopy(config)
    text = config.get_text_config()
    if count is not None:
        if kinds := getattr(text, "layer_types", None):
            text.layer_types = list(kinds)[:count]
        text.num_hidden_layers = count
    config.use_cache = False
    try:
        with torch.device("meta"):
            module = _auto(config).from_config(config, dtype=dtype)
    except Exception as error:  # a configuration is a stranger's, and each class checks it in its own way
        said = " ".join(str(error).split())[:200]
        raise ModelRefused(f"config.json describes no network: {type(error).__name__}: {said}") from error
    if mixtures(module):
        module.set_experts_implementation("batched_mm")  # what groups tokens refuses float32 on the meta device
    with_trees(module)
    return module.requires_grad_(False).eval()  # type: ignore[no-any-return]


def _auto(config: Any) -> Any:
    from transformers import AutoModelForCausalLM, AutoModelForImageClassification

    return AutoModelForImageClassification if reads_images(config, "The model") else AutoModelForCausalLM


def reads_images(config: Any, name: str) -> bool:
    """Whether it describes an image classifier, and no language model. Raises `ModelRefused` where it is neither."""
    return family_of(config, name).name == "vision"


def narrow(name: str, config: Any, words: Any) -> LanguageModel | ImageClassifier:
    """A narrow network; of an image classifier whose widths depend on one another in a way of its own, one as it is."""
    images, small = reads_images(config, name), _without_layers_of_their_own(config)
    for part in {id(part): part for part in (small, small.get_text_config())}.values():
        for key, value in NARROW.items():
            if was := getattr(part, key, None):
                setattr(part, key, value * len(was) if isinstance(was, list | tuple) else value)
        if not images:
            part.pad_token_id = part.bos_token_id = part.eos_token_id = None
    with torch.random.fork_rng(devices=()):
        torch.manual_seed(0)
        for each in (small, config) if images else (small,):
            try:
                module = _auto(config).from_config(each, dtype=torch.float32).requires_grad_(False).eval()
                if not images:
                    for p in (p for p in module.parameters() if p.dim() >= 2):  # so large that attention is felt
                        nn.init.normal_(p, std=p.shape[-1] ** -0.5)
                    return LanguageModel.of(module, words)
                side = getattr(config, "image_size", None) or 64
                sides = side if isinstance(side, list | tuple) else (side, side)
                module(pixel_values=torch.zeros(1, getattr(config, "num_channels", 3), *sides))
                return ImageClassifier.of(module, words)
            except Exception:  # each architecture checks its widths in its own way, some only when they are used
                continue
    raise ModelRefused(f"{name}: no small network of this architecture could be made to count with.")


def _without_layers_of_their_own(config: Any) -> Any:
    """A copy whose layers are all alike: what differs from layer to layer cannot be set for all."""
    settings = config.to_dict()
    for part in (settings, *(value for value in settings.values() if isinstance(value, dict))):
        for layer in (part.pop("per_layer_config", None) or {}).values():
            part.update({key: value for key, value in layer.items() if key in NARROW})
    return type(config).from_dict(settings) if settings != config.to_dict() else copy.deepcopy(config)


def read_blank(network: Any, layout: Layout, image: tuple[int, ...]) -> Tensor:
    """A pass over tokens or images without meaning: class scores, or what the output matrix reads."""
    weights = next(network.module.parameters())
    if image:
        pixels = torch.zeros(layout.trees, *image, dtype=weights.dtype, device=weights.device)
        return network.module(pixel_values=pixels).logits  # type: ignore[no-any-return]
    given: dict[str, Tensor] = {"input_ids": torch.zeros(layout.trees, layout.nodes, dtype=torch.long)}
    if layout.cut:
        ends = torch.zeros(1, 1, 1, layout.nodes, dtype=torch.long)
        set_pieces(ends, layout.cut)
        given |= {"position_ids": torch.zeros_like(given["input_ids"]), "attention_mask": ends}
    return network.states(**given)[0]  # type: ignore[no-any-return]


TOKENS, ROWS, WORDS = 5, 3, 250
"""Tokens of each example that a narrow network reads, how many of them are labelled, and what its vocabulary has."""


def shorten(example: Any) -> Any:
    """A text with few tokens, all of them in the narrow vocabulary; an image as it is."""
    if not isinstance(example, Tokenized):
        return example
    tokens = tuple(token % WORDS for token in (example.tokens * TOKENS)[-TOKENS:])
    text: Any = example
    return replace(text, tokens=tokens, first=TOKENS - ROWS)


def lengthen(reply: Rows, batch: Batch, classes: int) -> Rows:
    """A reply about shortened texts as one about all their rows: each row stands for some, and no two are equal."""
    each = len(reply.labels) // len(batch)
    labels = [e.tokens[e.first if each == ROWS else 1 :] for e in cast(Sequence[Tokenized], batch)]
    index = torch.tensor([k * each + row % each for k, own in enumerate(labels) for row in range(len(own))])
    tensors: dict[str, Any] = {name: tensor[index] for name, tensor in reply.tensors().items()}
    tensors["labels"] = torch.tensor([token % classes for own in labels for token in own])
    tensors["states"] = tensors["states"] + 0.01 * torch.randn_like(tensors["states"])
    return replace(reply, example=torch.tensor([k for k, own in enumerate(labels) for _ in own]), **tensors)
