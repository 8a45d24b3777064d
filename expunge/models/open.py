"""Opens a model of whichever family its configuration names, and whatever else `Model.save` wrote."""

from __future__ import annotations

import importlib
import re
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

from expunge.core.model import Model, Network
from expunge.errors import EnvironmentRefused, ModelRefused, UsageRefused
from expunge.models._family import Family
from expunge.models.merging import merge_adapter, read_adapter
from expunge.models.source import config_of, locate
from expunge.models.stored import stored_of
from expunge.primitives.composed_files import FILE, open_parts
from expunge.runtime.atomic_files import check_inside


def open_model(
    text: str | Path,
    device: str = "cpu",
    storage_device: str | None = None,
    dtype: str | None = None,
    adapter: str | Path | None = None,
) -> Model:
    """The model in a folder, a GGUF file, or at a hub id (`org/name@revision`).

    A folder may hold a transformers model, or what `save` of any other model wrote: a guarded network, an ensemble.
    The weights are put on `device`, or on `storage_device`: on the host, for processes that will hold a shard each.
    `dtype` (float32, bfloat16, float16) is the precision that `save` writes; None: that of the file.
    `adapter` is a folder with a LoRA or a bounded adapter of peft, made for this model, that is merged into it.
    Raises `ModelRefused` where the architecture is of no known family, or a file differs from its manifest.
    """
    if (Path(text) / FILE).is_file():
        if adapter is not None:
            raise UsageRefused(f"--adapter: {text} is made of other models. Merge the adapter into the one it is for.")
        check_inside(Path(text))
        return open_parts(Path(text), Model, lambda part: open_model(part, device, storage_device, dtype))
    return open_network(str(text), device, storage_device, dtype, adapter)


def open_network(
    text: str,
    device: str = "cpu",
    storage_device: str | None = None,
    dtype: str | None = None,
    adapter: str | Path | None = None,
) -> Network:
    """The network in a transformers folder, a GGUF file, or at a hub id."""
    import torch

    if not re.fullmatch(r"cpu|cuda(:\d+)?", device):
        raise UsageRefused(f"--device '{device}' is not known. Allowed: cpu, cuda, cuda:0, ...")
    if device.startswith("cuda") and not torch.cuda.is_available():
        raise EnvironmentRefused("There is no CUDA device here. Use --device cpu.")
    source = replace(locate(text), dtype=dtype)
    if source.local:
        check_inside(Path(source.name))
    merged = None if adapter is None else read_adapter(Path(adapter))
    families()  # some have a configuration of their own, which transformers knows once they are imported
    config = config_of(source)
    network = family_of(config, text).open(source, device, storage_device)
    if adapter is None or merged is None:
        return network
    return merge_adapter(network, Path(adapter), merged, stored_of(replace(source, dtype=None), config))


@cache
def families() -> tuple[Family, ...]:
    """The `FAMILY` of each file of this folder that defines one, by file name."""
    found = []
    for path in sorted(Path(__file__).parent.glob("*.py")):
        if "\nFAMILY = " in path.read_text(encoding="utf-8"):
            found.append(importlib.import_module(f"expunge.models.{path.stem}").FAMILY)
    return tuple(found)


def family_of(config: Any, text: str) -> Family:
    """The family of a configuration's architecture; `text` is the model as the user typed it."""
    for family in families():
        if family.has(config):
            return family
    kind = ", ".join(config.architectures or [config.model_type])
    known = " nor ".join(family.kind for family in families())
    *some, last = (ending for family in families() for ending in family.endings)
    raise ModelRefused(
        f"{text}: {kind} is neither {known}, the kinds that are read. "
        f"Give a model whose architecture ends in {', '.join(some)} or {last}."
    )
