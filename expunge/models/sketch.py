"""Networks that a configuration describes, made without weights: with sizes alone, or narrow and random."""

from __future__ import annotations

import copy
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from functools import partial
from typing import Any, cast

import torch
from torch import Tensor, nn

from expunge.core.model import Batch
from expunge.core.predictions import Rows
from expunge.errors import ModelRefused, Refusal
from expunge.internals.blocks import every_block
from expunge.internals.examples import Tokenized
from expunge.internals.mixtures import experts_of
from expunge.models.language import LanguageModel
from expunge.models.open import family_of
from expunge.models.picture_probe import scores_in
from expunge.models.prefix_tree import Layout
from expunge.models.tree_attention import set_pieces, with_trees
from expunge.models.vision import ImageClassifier

NARROW = {
    "vocab_size": 251,
    "hidden_size": 96,
    "intermediate_size": 212,
    "moe_intermediate_size": 68,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 24,
    "embedding_size": 8,
    "hidden_sizes": 8,
    "depths": 1,
}
"""Widths of the narrow network, where the architecture has one of that name. No batch is likely to have such a size, so
that a tensor's shape tells whether it is as large as a weight, or has a number for each class."""
WIDTH = re.compile(
    "(?!.*(patch|image|window|chunk|kernel|block|batch|position|group|codebook))"
    ".*(size|dim|width|rank|embd|d_model|d_head|d_ssm|d_kv|inner|ff|state|channels)"
)
"""What configurations call a width, which all may be divided by one number."""
MOST = 200_000_000
"""Numbers of the largest network that stands in for another."""
SPECIAL = ("pad_token_id", "bos_token_id", "eos_token_id")


def sketch(config: Any, dtype: torch.dtype, count: int | None = None) -> nn.Module:
    """The network that a configuration describes, on the meta device; of `count` blocks where that is given."""
    config = copy.deepcopy(config)
    config.use_cache = False
    try:
        if count is not None:
            _cut(config.get_text_config(), count)
        with torch.device("meta"):
            module = _auto(config).from_config(config, dtype=dtype)
    except Exception as error:  # a configuration is a stranger's, and each class checks it in its own way
        said = " ".join(str(error).split())[:200]
        raise ModelRefused(f"config.json describes no network: {type(error).__name__}: {said}") from error
    if any(experts_of(block) for block in every_block(module).values()):
        module.set_experts_implementation("batched_mm")  # what groups tokens refuses float32 on the meta device
    with_trees(module)
    return module.requires_grad_(False).eval()  # type: ignore[no-any-return]


def _cut(text: Any, count: int) -> None:
    if kinds := vars(text).get("layer_types"):
        text.layer_types = list(kinds)[:count]
    text.num_hidden_layers = count


def _auto(config: Any) -> Any:
    from transformers import AutoModelForCausalLM, AutoModelForImageClassification

    return AutoModelForImageClassification if reads_images(config, "The model") else AutoModelForCausalLM


def reads_images(config: Any, name: str) -> bool:
    """Whether it describes an image classifier, and no language model. Raises `ModelRefused` where it is neither."""
    family = family_of(config, name)
    if family.name not in ("language", "vision"):
        raise ModelRefused(f"{name}: is {family.kind}, and plans are of language models and image classifiers. Run it.")
    return family.name == "vision"


def narrow(name: str, config: Any, words: Any) -> LanguageModel | ImageClassifier:
    """A narrow network of the same architecture, with random weights.

    Widths are those of `NARROW`; where they depend on one another in a way of their own, all are divided by one number;
    an image classifier for which neither works stays as it is. Raises `ModelRefused` where nothing can be made.
    """
    images, last = reads_images(config, name), "its narrow forms are too large"
    with torch.random.fork_rng(devices=()):
        torch.manual_seed(0)
        for small in _smaller(config, images):
            try:
                if not images and sum(p.numel() for p in sketch(small, torch.float32).parameters()) > MOST:
                    continue
                module = _auto(config).from_config(small, dtype=torch.float32).requires_grad_(False).eval()
                if not images:
                    for p in (p for p in module.parameters() if p.dim() >= 2):  # so large that attention is felt
                        nn.init.normal_(p, std=p.shape[-1] ** -0.5)
                    return LanguageModel.of(module, words)
                side = getattr(config, "image_size", None) or 64
                sides = side if isinstance(side, list | tuple) else (side, side)
                module(pixel_values=torch.zeros(1, getattr(config, "num_channels", 3), *sides))
                return ImageClassifier.of(module, words)
            except Exception as error:  # each architecture checks its widths in its own way, some only when used
                last = type(error).__name__
    raise ModelRefused(f"{name}: no small network of this architecture could be made to count with ({last}).")


def _smaller(config: Any, images: bool) -> Iterator[Any]:
    """Configurations to try, in this order."""
    yield _resize(config, lambda key, value: NARROW.get(_canonical(key), value), images)
    if images:
        yield config
        return
    width = max(32, int(getattr(config.get_text_config(), "hidden_size", 32)))
    for factor in (1 << power for power in range((width // 32).bit_length() - 1, -1, -1)):
        yield _resize(config, partial(_divide, by=factor), images)


def _canonical(key: str) -> str:
    """A second embedding of the same tokens, such as Gemma's `vocab_size_per_layer_input`, has as many rows."""
    return "vocab_size" if key.startswith("vocab_size") else key


def _divide(key: str, value: int, by: int) -> int:
    if _canonical(key) == "vocab_size":
        return NARROW["vocab_size"]
    if "experts" in key and "per_tok" not in key:
        return min(value, 16)
    return max(2, value // by) if WIDTH.match(key) and value > 1 else value


def _resize(config: Any, resize: Callable[[str, int], int], images: bool) -> Any:
    """A copy of which each whole number, in the configurations inside of it too, is what `resize` makes of it."""
    small = copy.deepcopy(config)
    for part in _parts(small):
        standard = {own: key for key, own in part.attribute_map.items()}
        for key, was in list(vars(part).items()):
            name = standard.get(key, key)
            if isinstance(was, list | tuple) and was and all(type(each) is int for each in was):
                setattr(part, key, type(was)(resize(name, each) for each in was))
            elif type(was) is int and was > 0:
                setattr(part, key, resize(name, was))
            if key in SPECIAL and not images and isinstance(was, int | list):
                setattr(part, key, 0)  # of a vocabulary that is not there any more
    return small


def _parts(config: Any) -> Iterator[Any]:
    from transformers import PretrainedConfig

    yield config
    for inner in vars(config).values():
        if isinstance(inner, PretrainedConfig):
            yield from _parts(inner)


def read_blank(network: Any, layout: Layout, image: tuple[int, ...]) -> Tensor:
    """A pass over tokens or images without meaning: class scores, or what the output matrix reads.

    Raises `ModelRefused` where the pass depends on what is in its tensors.
    """
    try:
        return _read_blank(network, layout, image)
    except Refusal:
        raise
    except Exception as error:  # an architecture's own, from anywhere in it
        raise ModelRefused(
            f"{type(network.module).__name__}: what a pass costs depends on what it reads ({type(error).__name__}), so "
            f"no plan can be made of it. `expunge forget` may run nonetheless."
        ) from error


def _read_blank(network: Any, layout: Layout, image: tuple[int, ...]) -> Tensor:
    weights = next(network.module.parameters())
    if image:
        pixels = torch.zeros(layout.trees, *image, dtype=weights.dtype, device=weights.device)
        return scores_in(network.module(pixel_values=pixels))
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
