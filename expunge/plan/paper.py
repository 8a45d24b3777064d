"""A model on paper: configuration, tokenizer and the shapes of its weights, but no weight.

The network is made on torch's meta device, whose tensors have a shape and no data. What cannot be told from shapes
(whether the architecture reads trees, whether class scores end in the output matrix) is tried on a small random network
of the same architecture: both belong to the code of a model, not to its weights.
"""

from __future__ import annotations

import copy
import json
import time
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import nn

from expunge.errors import ModelRefused
from expunge.internals.blocks import blocks as blocks_of
from expunge.internals.mixtures import mixtures
from expunge.models.language import LARGEST, LanguageModel, load_tokenizer
from expunge.models.open import LANGUAGE, VISION, family_of
from expunge.models.source import Source, config_of, locate
from expunge.models.tree_attention import with_trees
from expunge.models.vision import ImageClassifier, load_processor
from expunge.plan.gguf import Packed, packed

LONGEST_HEADER = 100 << 20
"""Bytes of a safetensors header at most, as the format has it."""
DTYPES = {"F64": torch.float64, "F32": torch.float32, "BF16": torch.bfloat16, "F16": torch.float16}
NARROW = {
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
}
"""Widths of the small network, where the architecture has a width of that name."""
NARROW_STAGES: dict[str, Any] = {"embedding_size": 8, "hidden_sizes": [8], "depths": [1]}
"""The same for networks of several stages: a width, and what each stage has."""


Readable = LanguageModel | ImageClassifier
"""What can be planned for."""


@dataclass(frozen=True)
class Paper:
    """What is known of a model before it is loaded."""

    name: str
    config: Any
    network: Readable
    """On the meta device, with the tokenizer or the image processor."""
    stored: torch.dtype
    """The precision of the weights' file; the configuration's where there is no file."""
    dtype: torch.dtype
    """The precision of a run: float32 on a CPU, the stored one elsewhere."""
    small: Readable | None
    """A random network of the same architecture, blocks and vocabulary, but narrow; None where none could be made."""
    took: float = 0.0
    """Seconds that the tokenizer, or the image processor, took to load."""
    shape: tuple[int, ...] = ()
    """Of one image as the network reads it: channels, height and width; known once the images are read."""
    packed: Packed | None = None
    """The header of the GGUF file, where the model lies in one."""

    def at(self, dtype: torch.dtype) -> Paper:
        """The same with weights of another precision."""
        return replace(self, dtype=dtype, network=replace(self.network, module=sketch(self.config, dtype)))

    @property
    def parameters(self) -> int:
        """How many numbers the weights are; tied ones once."""
        return sum(p.numel() for p in self.network.module.parameters())

    @property
    def blocks(self) -> int:
        """How many blocks stand on one another; an image classifier without attention is one."""
        if isinstance(self.network, ImageClassifier):
            return max(1, len(blocks_of(self.network.module)))
        return int(self.config.get_text_config().num_hidden_layers)

    @property
    def width(self) -> int:
        """Length of what is remembered of a row: a hidden state, or an image's class scores."""
        if isinstance(self.network, ImageClassifier):
            return len(self.network.classes)
        return int(self.config.get_text_config().hidden_size)


def opened(model: str, device: str, dtype: torch.dtype | None) -> Paper:
    """The model that `model` names, as a run on `device` would hold it. Reads no weight."""
    source = _source(model)
    config = config_of(source)
    family = family_of(config)
    if not family:
        kind = ", ".join(config.architectures or [config.model_type])
        raise ModelRefused(f"{model}: {kind} is neither a causal language model nor an image classifier.")
    start = time.monotonic()
    words = load_tokenizer(source) if family == LANGUAGE else load_processor(source)
    took = time.monotonic() - start
    file = packed(Path(source.name) / source.gguf) if source.gguf else None
    stored = file.dtype if file else _stored(source, config)
    paper = replace(on_paper(Path(model).name, config, words, stored, device, dtype), took=took, packed=file)
    if file:
        file.check(model, paper.parameters)
    return paper


def on_paper(name: str, config: Any, words: Any, stored: torch.dtype, device: str, dtype: torch.dtype | None) -> Paper:
    """A model from its configuration and tokenizer, or image processor."""
    run = dtype or (torch.float32 if device == "cpu" else stored)
    small = _small(config)
    if family_of(config) == VISION:
        return Paper(name, config, ImageClassifier.of(sketch(config, run), words), stored, run, small)
    config.use_cache = False
    trees, headed = (small.trees, small.headed) if isinstance(small, LanguageModel) else (_window(config), True)
    return Paper(name, config, LanguageModel(sketch(config, run), words, trees, headed), stored, run, small)


def sketch(config: Any, dtype: torch.dtype, blocks: int | None = None) -> nn.Module:
    """The network that a configuration describes, on the meta device, of `blocks` blocks where that is given."""
    try:
        with torch.device("meta"):
            module = _auto(config).from_config(_of_blocks(config, blocks), dtype=dtype)
    except Exception as error:  # a configuration is a stranger's, and each class checks it in its own way
        said = " ".join(str(error).split())[:200]
        raise ModelRefused(f"config.json describes no network: {type(error).__name__}: {said}") from error
    if mixtures(module):
        module.set_experts_implementation("batched_mm")  # what groups tokens refuses float32 on the meta device
    with_trees(module)
    return module.requires_grad_(False).eval()


def _auto(config: Any) -> Any:
    from transformers import AutoModelForCausalLM, AutoModelForImageClassification

    return AutoModelForImageClassification if family_of(config) == VISION else AutoModelForCausalLM


def _of_blocks(config: Any, blocks: int | None) -> Any:
    config = copy.deepcopy(config)
    text = config.get_text_config()
    if blocks is not None and family_of(config) != VISION:  # those are run whole
        kinds = getattr(text, "layer_types", None)
        if kinds:
            text.layer_types = list(kinds)[:blocks]
        text.num_hidden_layers = blocks
    return config


def _source(model: str) -> Source:
    path = Path(model)
    weights = (*path.glob("*.safetensors"), *path.glob("*.bin"), *path.glob("*.gguf")) if path.is_dir() else ()
    if path.is_dir() and (path / "config.json").is_file() and not weights:
        return Source(model)  # a configuration alone is enough to plan with
    return locate(model)


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


def _window(config: Any) -> int:
    """The largest tree of an architecture that reads trees."""
    return min(int(getattr(config.get_text_config(), "sliding_window", None) or LARGEST), LARGEST)


def _small(config: Any) -> Readable | None:
    """A narrow network whose weights are large enough that its attention is felt."""
    if family_of(config) == VISION:
        return _small_classifier(config)
    config = copy.deepcopy(config)
    text = config.get_text_config()
    for name, value in NARROW.items():
        if getattr(text, name, None):
            setattr(text, name, value)
    try:
        with torch.random.fork_rng(devices=()):
            torch.manual_seed(0)
            module = _auto(config).from_config(config, dtype=torch.float32)
            for p in module.parameters():
                if p.dim() >= 2:
                    nn.init.normal_(p, std=p.shape[-1] ** -0.5)
        return LanguageModel.of(module.requires_grad_(False).eval(), None)
    except Exception:  # an architecture whose widths depend on one another in a way of its own
        return None


def _small_classifier(config: Any) -> ImageClassifier:
    """A narrow image classifier; of an architecture whose widths depend on one another, one as wide as it is."""
    narrow = copy.deepcopy(config)
    for name, value in {**NARROW, **NARROW_STAGES}.items():
        if getattr(narrow, name, None):
            setattr(narrow, name, value if isinstance(value, int) else value * len(getattr(narrow, name)))
    side, channels = getattr(config, "image_size", None) or 64, getattr(config, "num_channels", 3)
    height, width = side if isinstance(side, list | tuple) else (side, side)
    with torch.random.fork_rng(devices=()):
        torch.manual_seed(0)
        try:
            made = _auto(narrow).from_config(narrow, dtype=torch.float32).requires_grad_(False).eval()
            made(pixel_values=torch.zeros(1, channels, height, width))
        except Exception:  # each architecture checks its widths in its own way, some only when they are used
            made = _auto(config).from_config(config, dtype=torch.float32).requires_grad_(False)
    return ImageClassifier.of(made, None)
