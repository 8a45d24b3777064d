"""A GGUF file before it is loaded: its tensors' types and shapes, from its header alone.

Loading widens every tensor, whatever its type in the file, into numbers of the run's precision. While one is widened it
exists twice in float32, beside the file's own pages and all that is widened already. That is host memory, where the
model is loaded before it is moved to a device.
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from expunge.errors import EnvironmentRefused, ModelRefused

PLAIN = {"F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}
ROTARY = "rope_"
"""Begins the names of tensors that hold frequencies: the network works them out itself."""


@dataclass(frozen=True)
class Packed:
    """What a GGUF file's header says of its tensors."""

    file: float
    """Bytes of the file."""
    kinds: dict[str, int]
    """Numbers by the type that holds them."""
    largest: int
    """Numbers of the largest tensor."""
    architecture: str
    took: float
    """Seconds that its header took to read."""

    @property
    def dtype(self) -> torch.dtype:
        """What `dtype="auto"` makes of it in transformers: float32, but for the few architectures that it reads by its
        own means, which keep the file's precision where the file holds numbers and no blocks."""
        from transformers.integrations.gguf import is_gguf_arch_supported  # type: ignore[attr-defined]

        if not is_gguf_arch_supported(self.architecture) or not set(self.kinds) <= set(PLAIN):
            return torch.float32
        return next((PLAIN[kind] for kind in ("BF16", "F16") if kind in self.kinds), torch.float32)

    @property
    def beside(self) -> float:
        """Bytes that exist while the model is loaded, beside its weights."""
        return self.file + 2 * 4 * self.largest

    def check(self, path: str, parameters: int) -> None:
        """Refuse a file with fewer numbers than the network that its metadata describes."""
        numbers = sum(self.kinds.values())
        if numbers < parameters:
            raise ModelRefused(
                f"{path}: its tensors hold {numbers:,} numbers, and the network that it describes has {parameters:,}. "
                f"Fetch it again."
            )

    def seconds(self) -> float:
        """How long it takes here to read the header twice, and to widen all, from widening a little of each type."""
        import numpy as np
        from gguf import GGML_QUANT_SIZES, GGMLQuantizationType, dequantize

        total = 2 * self.took
        for name, count in self.kinds.items():
            block, size = GGML_QUANT_SIZES[GGMLQuantizationType[name]]
            rows = max(1, min(1 << 20, count) // (32 * block))
            start = time.perf_counter()
            dequantize(np.zeros((rows, 32 * size), dtype=np.uint8), GGMLQuantizationType[name])
            total += (time.perf_counter() - start) * count / (rows * 32 * block)
        return total


def read_packed(path: Path) -> Packed:
    """What the header of the GGUF file at `path` says."""
    try:
        from gguf import GGUFReader
    except ImportError as error:
        raise EnvironmentRefused("GGUF files need the gguf package: pip install 'expunge[gguf]'.") from error
    start = time.perf_counter()
    try:
        reader: Any = GGUFReader(path)
        architecture = str(reader.fields["general.architecture"].contents())
        kinds: dict[str, int] = {}
        sizes = [(t.tensor_type.name, int(t.n_elements)) for t in reader.tensors if not t.name.startswith(ROTARY)]
        for kind, count in sizes:
            kinds[kind] = kinds.get(kind, 0) + count
        largest = max(count for _, count in sizes)
    except Exception as error:  # the reader has no error of its own: a torn file fails wherever it ends
        raise ModelRefused(f"{path}: its header is not that of a GGUF file. Fetch it again.") from error
    return Packed(float(path.stat().st_size), kinds, largest, architecture, time.perf_counter() - start)
