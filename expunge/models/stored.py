"""How a model's file holds its weights, in which precisions and shards; and how another's are written in the same way.

On a CPU a network computes in float32, whatever its file has. What is written is rounded to the file's own precision
again, tensor by tensor where a file has several. `Source.dtype` chooses another.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from expunge.errors import ModelRefused
from expunge.models.source import Source, read_json, without_bars

LONGEST_HEADER = 100 << 20
"""Bytes of a safetensors header at most, as the format has it."""
DTYPES = {"F64": torch.float64, "F32": torch.float32, "BF16": torch.bfloat16, "F16": torch.float16}
"""Precisions by their names in safetensors files."""


@dataclass(frozen=True)
class Stored:
    """How weights are held in a folder."""

    dtype: torch.dtype
    """The precision of most numbers."""
    others: Mapping[str, torch.dtype] = field(default_factory=dict)
    """Tensors in another precision, by name."""
    shard: int = 0
    """Bytes of the largest shard, which none written exceeds; 0: all in one file."""

    def dtype_of(self, name: str) -> torch.dtype:
        """The precision of a tensor."""
        return self.others.get(name, self.dtype)

    def state(self, module: Any) -> dict[str, Tensor]:
        """The module's tensors in these precisions. Raises `ModelRefused` where a number is too large for its own."""
        made: dict[str, Tensor] = {}
        cast: dict[tuple[int, torch.Size], Tensor] = {}  # tied weights stay one tensor
        for name, tensor in module.state_dict().items():
            key = (tensor.data_ptr(), tensor.shape)
            if key not in cast or not tensor.numel():
                wanted = self.dtype_of(name) if tensor.is_floating_point() else tensor.dtype
                cast[key] = tensor.detach().to(wanted)
                if wanted != tensor.dtype and not torch.isfinite(cast[key]).all():
                    called = str(wanted).removeprefix("torch.")
                    raise ModelRefused(f"{name} holds numbers too large for {called}. Give another --dtype.")
            made[name] = cast[key]
        return made

    def write(self, module: Any, folder: Path) -> None:
        """Write a transformers folder whose weights are held in this way."""
        limit = {"max_shard_size": self.shard} if self.shard else {}
        with without_bars():
            module.save_pretrained(folder, safe_serialization=True, state_dict=self.state(module), **limit)
        path, called = folder / "config.json", str(self.dtype).removeprefix("torch.")
        config = read_json(path)
        if config.get("dtype") != called:  # transformers writes that of the module in memory
            path.write_text(json.dumps({**config, "dtype": called}, indent=2, sort_keys=True) + "\n", encoding="utf-8")


def write_module(module: Any, stored: Stored | None, folder: Path) -> None:
    """Write a transformers folder: as `stored` says, or as the module is."""
    (stored or Stored(next(module.parameters()).dtype, _types(module))).write(module, folder)


def _types(module: Any) -> dict[str, torch.dtype]:
    return {name: tensor.dtype for name, tensor in module.state_dict().items()}


def stored_of(source: Source, config: Any) -> Stored:
    """How a source holds its weights; in the precision that it asks for, if it does."""
    files = weight_files(Path(source.name)) if source.local and not source.gguf else []
    if source.dtype or not files:
        shard = max((_size(header(path)) for path in files), default=0) if len(files) > 1 else 0
        return Stored(getattr(torch, source.dtype) if source.dtype else _read_dtype(source, config), shard=shard)
    headers = [header(path) for path in files]
    most = stored_dtype(source, config)
    others = {
        name: DTYPES[tensor["dtype"]]
        for each in headers
        for name, tensor in each.items()
        if tensor["dtype"] in DTYPES and DTYPES[tensor["dtype"]] != most
    }
    return Stored(most, others, max(map(_size, headers)) if len(files) > 1 else 0)


def stored_dtype(source: Source, config: Any) -> torch.dtype:
    """The torch precision that most of the weights' numbers are in, by the headers of the safetensors files; the
    configuration's where there is no file."""
    counts: dict[str, int] = {}
    for path in weight_files(Path(source.name)) if source.local and not source.gguf else ():
        for tensor in header(path).values():
            start, end = tensor["data_offsets"]
            counts[tensor["dtype"]] = counts.get(tensor["dtype"], 0) + end - start
    if counts:
        return DTYPES.get(max(counts, key=counts.__getitem__), torch.bfloat16)
    return _read_dtype(source, config)


def weight_files(folder: Path) -> list[Path]:
    """The files of weights that transformers reads: one whole file goes before the shards of an index."""
    whole, index = folder / "model.safetensors", folder / "model.safetensors.index.json"
    if whole.is_file() or not index.is_file():
        return [whole] if whole.is_file() else sorted(folder.glob("*.safetensors"))
    named = read_json(index).get("weight_map")
    return [folder / name for name in sorted(set(map(str, named.values())))] if isinstance(named, dict) else []


def types_in(folder: Path) -> set[str]:
    """The precisions of the weights in a folder, such as float32."""
    tensors = [tensor for path in folder.rglob("*.safetensors") for tensor in header(path).values()]
    return {str(DTYPES.get(tensor["dtype"], tensor["dtype"])).removeprefix("torch.") for tensor in tensors}


def _read_dtype(source: Source, config: Any) -> torch.dtype:
    named = getattr(config, "dtype", None)
    return named if isinstance(named, torch.dtype) and not source.gguf else torch.float32


def _size(tensors: Mapping[str, Any]) -> int:
    return sum(tensor["data_offsets"][1] - tensor["data_offsets"][0] for tensor in tensors.values())


def header(path: Path) -> dict[str, Any]:
    """The names, types and places of a safetensors file's tensors."""
    try:
        with path.open("rb") as file:
            length = int.from_bytes(file.read(8), "little")
            if not 0 < length <= LONGEST_HEADER:
                raise ValueError
            read = json.loads(file.read(length))
            tensors = {name: tensor for name, tensor in read.items() if name != "__metadata__"}
            if not all(len(t["data_offsets"]) == 2 and isinstance(t["dtype"], str) for t in tensors.values()):
                raise ValueError
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise ModelRefused(f"{path}: its header is not that of a safetensors file. Fetch it again.") from error
    return tensors
