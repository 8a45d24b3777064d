"""A model on paper: configuration, tokenizer and the shapes of its weights, but no weight.

The network is made on torch's meta device, whose tensors have a shape and no data. A narrow random network of the same
architecture stands in for it where something must be run: its code is the same, only its widths are not.
"""

from __future__ import annotations

import copy
import json
import time
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import nn

from expunge.errors import ModelRefused
from expunge.internals.blocks import blocks
from expunge.internals.mixtures import mixtures
from expunge.models.language import LARGEST, ROOM, LanguageModel, load_tokenizer
from expunge.models.open import family_of
from expunge.models.source import Source, config_of, locate
from expunge.models.tree_attention import with_trees
from expunge.models.vision import ImageClassifier, load_processor
from expunge.plan.gguf import Packed, packed

LONGEST_HEADER = 100 << 20
"""Bytes of a safetensors header at most, as the format has it."""
DTYPES = {"F64": torch.float64, "F32": torch.float32, "BF16": torch.bfloat16, "F16": torch.float16}
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


@dataclass(frozen=True)
class Paper:
    """What is known of a model before it is loaded."""

    name: str
    config: Any
    network: LanguageModel | ImageClassifier
    """On the meta device, with the tokenizer or the image processor."""
    narrow: LanguageModel | ImageClassifier
    """The same architecture with random weights, but narrow."""
    stored: torch.dtype
    """The precision of the weights' file; the configuration's where there is no file."""
    dtype: torch.dtype
    """The precision of a run: float32 on a CPU, the stored one elsewhere."""
    took: float = 0.0
    """Seconds that the tokenizer, or the image processor, took to load."""
    shape: tuple[int, ...] = ()
    """Of one image as the network reads it: channels, height and width; known once the images are read."""
    packed: Packed | None = None
    """The header of the GGUF file, where the model lies in one."""

    def at(self, dtype: torch.dtype) -> Paper:
        """The same with weights of another precision."""
        narrow = self.narrow.fork(copy.deepcopy(self.narrow.module).to(dtype))
        network = replace(self.network, module=sketch(self.config, dtype))
        return replace(self, dtype=dtype, network=network, narrow=narrow)

    @cached_property
    def parameters(self) -> int:
        """Numbers in all weights."""
        return sum(p.numel() for p in self.network.module.parameters())

    @cached_property
    def blocks(self) -> int:
        """Repeated blocks; 1 where there are none."""
        return len(blocks(self.network.module)) or 1

    @property
    def size(self) -> int:
        """Bytes of a number."""
        return torch.empty((), dtype=self.dtype).element_size()

    @property
    def weights(self) -> float:
        """Bytes of all weights."""
        return float(self.parameters * self.size)

    @property
    def classes(self) -> tuple[int, int]:
        """Shape of the output matrix where it is met by labelled rows alone; else nothing."""
        if not isinstance(self.network, LanguageModel) or not self.network.headed:
            return 0, 0
        rows, width = self.network.module.get_output_embeddings().weight.shape  # type: ignore[operator]
        return int(rows), int(width)


def opened(model: str, device: str, dtype: torch.dtype | None) -> Paper:
    """The model as a run on `device` would hold it. Reads no weight."""
    path = Path(model)
    bare = (path / "config.json").is_file() and not any(
        file.suffix in (".safetensors", ".bin", ".gguf") for file in path.iterdir()
    )
    source = Source(model) if bare else locate(model)  # a configuration alone is enough to plan with
    config = config_of(source)
    start = time.monotonic()
    words = load_processor(source) if reads_images(config, model) else load_tokenizer(source)
    took = time.monotonic() - start
    file = packed(Path(source.name) / source.gguf) if source.gguf else None
    stored = file.dtype if file else _stored(source, config)
    paper = replace(on_paper(path.name, config, words, stored, device, dtype), took=took, packed=file)
    if file:
        file.check(model, paper.parameters)
    return paper


def on_paper(name: str, config: Any, words: Any, stored: torch.dtype, device: str, dtype: torch.dtype | None) -> Paper:
    """A model from its configuration and tokenizer, or image processor."""
    run = dtype or (torch.float32 if device == "cpu" else stored)
    narrow = _narrow(name, config, words)
    module: Any = sketch(config, run)
    if isinstance(narrow, ImageClassifier):
        network: LanguageModel | ImageClassifier = ImageClassifier.of(module, words)
    else:
        window = int(getattr(config.get_text_config(), "sliding_window", None) or LARGEST)
        trees = min(window, LARGEST) if narrow.trees else 0
        network = LanguageModel(module, words, trees, narrow.headed, ROOM[device])
        narrow = replace(narrow, trees=0)  # what it is given is cut to one length
    narrow.module.to(run)
    return Paper(name, config, network, narrow, stored, run)


def sketch(config: Any, dtype: torch.dtype, count: int | None = None) -> nn.Module:
    """The network that a configuration describes, on the meta device; of `count` blocks where that is given."""
    config = copy.deepcopy(config)
    text = config.get_text_config()
    if count is not None and not reads_images(config):  # those are run whole
        kinds = getattr(text, "layer_types", None)
        if kinds:
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

    return AutoModelForImageClassification if reads_images(config) else AutoModelForCausalLM


def reads_images(config: Any, name: str = "the configuration") -> bool:
    """Whether it describes an image classifier, and no language model. Raises `ModelRefused` where it is neither."""
    return family_of(config, name).name == "vision"


def _narrow(name: str, config: Any, words: Any) -> LanguageModel | ImageClassifier:
    """A narrow network; of an architecture whose widths depend on one another in a way of its own, one as it is."""
    images = reads_images(config)
    small = copy.deepcopy(config)
    for each in {id(part): part for part in (small, small.get_text_config())}.values():
        for key, value in NARROW.items():
            if was := getattr(each, key, None):
                setattr(each, key, value * len(was) if isinstance(was, list | tuple) else value)
        if not images:
            each.pad_token_id = each.bos_token_id = each.eos_token_id = None
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


def _stored(source: Source, config: Any) -> torch.dtype:
    """The precision that most of the weights' numbers are in, by the headers of the files."""
    counts: dict[str, int] = {}
    for path in sorted(Path(source.name).glob("*.safetensors")) if source.local else ():
        for tensor in _header(path).values():
            start, end = tensor["data_offsets"]
            counts[tensor["dtype"]] = counts.get(tensor["dtype"], 0) + end - start
    if counts:
        return DTYPES.get(max(counts, key=counts.__getitem__), torch.bfloat16)
    named = getattr(config, "dtype", None)
    return named if isinstance(named, torch.dtype) else torch.float32


def _header(path: Path) -> dict[str, Any]:
    try:
        with path.open("rb") as file:
            length = int.from_bytes(file.read(8), "little")
            if not 0 < length <= LONGEST_HEADER:
                raise ValueError
            header = json.loads(file.read(length))
            tensors = {name: tensor for name, tensor in header.items() if name != "__metadata__"}
            if not all(len(t["data_offsets"]) == 2 and isinstance(t["dtype"], str) for t in tensors.values()):
                raise ValueError
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise ModelRefused(f"{path}: its header is not that of a safetensors file. Fetch it again.") from error
    return tensors
