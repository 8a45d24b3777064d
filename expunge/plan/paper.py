"""A model on paper: configuration, tokenizer and the shapes of its weights, but no weight.

The network is made on torch's meta device, whose tensors have a shape and no data. A narrow random network of the same
architecture stands in for it where something must be run: its code is the same, only its widths are not.
"""

from __future__ import annotations

import copy
import time
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import torch

from expunge.internals.blocks import every_block
from expunge.models.gguf import Packed, read_packed
from expunge.models.language import ROOM, LanguageModel, load_tokenizer
from expunge.models.sketch import narrow, reads_images, sketch
from expunge.models.source import Source, config_of, locate
from expunge.models.stored import stored_dtype
from expunge.models.vision import ImageClassifier, load_processor


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
    """Of one image as the network reads it: channels, height and width; empty for texts."""
    packed: Packed | None = None
    """The header of the GGUF file, where the model lies in one."""
    written: torch.dtype | None = None
    """The precision of the result; None: the stored one."""

    def at(self, dtype: torch.dtype) -> Paper:
        """The same with weights of another precision."""
        small = self.narrow.fork(copy.deepcopy(self.narrow.module).to(dtype))
        return replace(self, dtype=dtype, network=self.network.fork(sketch(self.config, dtype)), narrow=small)

    @cached_property
    def parameters(self) -> int:
        """Numbers in all weights."""
        return sum(p.numel() for p in self.network.module.parameters())

    @cached_property
    def blocks(self) -> int:
        """Repeated blocks; 1 where there are none."""
        return len(self._blocks) or 1

    @cached_property
    def _blocks(self) -> dict[str, torch.nn.Module]:
        return every_block(self.network.module)

    @cached_property
    def alike(self) -> bool:
        """Whether all blocks are of one kind, so that two of them tell of all."""
        return len({repr(block) for block in self._blocks.values()}) == 1

    @property
    def weights(self) -> float:
        """Bytes of all weights."""
        return float(self.parameters * self.dtype.itemsize)

    @property
    def trees(self) -> bool:
        """Whether it reads texts as trees."""
        return isinstance(self.network, LanguageModel) and self.network.trees > 0

    @property
    def classes(self) -> tuple[int, int]:
        """Shape of the output matrix where labelled rows alone meet it; else zeros."""
        if self.shape or not isinstance(self.network, LanguageModel) or not self.network.headed:
            return 0, 0
        rows, width = self.network.module.get_output_embeddings().weight.shape
        return int(rows), int(width)


def open_paper(model: str, device: str, dtype: torch.dtype | None) -> Paper:
    """The model as a run on `device` would hold it. Reads no weight."""
    path, kinds = Path(model), ("*.safetensors", "*.bin", "*.gguf")
    bare = (path / "config.json").is_file() and not any(file for kind in kinds for file in path.glob(kind))
    source = Source(model) if bare else locate(model)  # a configuration alone is enough to plan with
    config, start = config_of(source), time.monotonic()
    words = load_processor(source) if reads_images(config, model) else load_tokenizer(source)
    took, file = time.monotonic() - start, read_packed(Path(source.name) / source.gguf) if source.gguf else None
    stored = file.dtype if file else stored_dtype(source, config)
    made = on_paper(path.name, config, words, stored, device, dtype)
    paper = replace(made, took=took, packed=file, written=dtype)
    if file:
        file.check(model, paper.parameters)
    return paper


def on_paper(name: str, config: Any, words: Any, stored: torch.dtype, device: str, dtype: torch.dtype | None) -> Paper:
    """A model from its configuration and tokenizer, or image processor."""
    run = torch.float32 if device == "cpu" else dtype or stored
    small, network = narrow(name, config, words), sketch(config, run)
    if isinstance(small, ImageClassifier):
        return Paper(name, config, ImageClassifier.of(network, words), small.fork(small.module.to(run)), stored, run)
    # The narrow network was probed, and its configuration names the same lengths at which texts are read otherwise.
    whole = LanguageModel(network, words, small.trees, small.headed, ROOM[device], small.rows, small.nodes)
    # What the narrow one is given is cut to one length.
    return Paper(name, config, whole, replace(small, module=small.module.to(run), trees=0), stored, run)
