"""A peft adapter merged into the model that it was made for: peft's own LoRA, or a bounded one.

peft loads a LoRA into any model that has some of its layers, and leaves those that the file lacks at 0. Here each
tensor must find its place. Weights are merged in float32 and rounded to the precision of the model's file, so that the
network is the one that the merged model's folder would give.
"""

from __future__ import annotations

import hashlib
import json
import warnings
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import nn

from expunge.core.model import Network
from expunge.errors import ModelRefused, Refusal, UsageRefused
from expunge.models.stored import Stored
from expunge.primitives.merged_adapter import MergedAdapter
from expunge.primitives.out_of_memory import is_out_of_memory
from expunge.primitives.tensor_digest import digest_tensors
from expunge.runtime.atomic_files import MANIFEST, check_inside, check_manifest

SETTINGS, WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
KINDS = ("LORA", "BOUNDED")
FOREIGN = ("megatron_config", "layer_replication")
"""Settings of a LoRA that import a module by its name, or make another architecture of the base."""
Opened = TypeVar("Opened", bound=Network)


def read_adapter(folder: Path) -> MergedAdapter:
    """What lies in a folder, before peft sees it. Raises `UsageRefused` or `ModelRefused` where it is no adapter that
    can be merged."""
    if not folder.is_dir():
        raise UsageRefused(f"--adapter {folder}: no such folder. Give the folder of an adapter, such as OUT/adapter.")
    try:
        text = (folder / SETTINGS).read_bytes()
        settings = json.loads(text)
    except OSError as error:
        raise ModelRefused(
            f"{folder / SETTINGS} is not there. Give an adapter's folder, such as OUT/adapter."
        ) from error
    except (ValueError, RecursionError) as error:
        raise ModelRefused(f"{folder / SETTINGS} is not JSON. Restore the folder.") from error
    kind = settings.get("peft_type") if isinstance(settings, dict) else None
    if kind not in KINDS:
        raise ModelRefused(
            f"{folder / SETTINGS}: `peft_type` must be one of {', '.join(KINDS)}. Got {ascii(kind)[:40]}. Merge other "
            f"kinds by peft itself: merge_and_unload(), save_pretrained(NEW), and give that folder as the model."
        )
    for name in FOREIGN:
        if settings.get(name):
            raise ModelRefused(
                f"{folder / SETTINGS}: has `{name}`, which is not read. Merge the adapter by peft itself."
            )
    if not (folder / WEIGHTS).is_file():
        raise ModelRefused(f"{folder / WEIGHTS} is not there. Restore the folder; pickled weights are not read.")
    check_inside(folder)
    if (folder / MANIFEST).is_file():
        check_manifest(folder, lambda name: name in (SETTINGS, WEIGHTS))
    digest = hashlib.sha256(text)
    with (folder / WEIGHTS).open("rb") as file:
        digest.update(hashlib.file_digest(file, "sha256").digest())
    return MergedAdapter(folder.resolve().name, str(kind), digest.hexdigest())


def merge_adapter(network: Opened, folder: Path, adapter: MergedAdapter, stored: Stored) -> Opened:
    """The network with the adapter that lies in `folder` merged into its weights, which are rounded to those of the
    model's file.

    Raises `ModelRefused` where the adapter is damaged, or was made for another model.
    """
    module: Any = network.module
    types = {name: tensor.dtype for name, tensor in module.state_dict().items()}
    adapted = insert_adapter(network, folder, stored)
    with _in_one_line(folder, module), torch.no_grad():
        merged = adapted.merge_and_unload(safe_merge=True)
    if merged.state_dict().keys() != types.keys():
        raise ModelRefused(f"{folder}: the merged model has other tensors than the base. Merge it by peft itself.")
    rounded = stored.state(merged)
    for name, tensor in (*merged.named_parameters(), *merged.named_buffers()):
        if name in rounded:  # some buffers are in no file
            tensor.data = rounded[name].to(types[name])
    return replace(network, module=merged.requires_grad_(False).eval(), adapter=adapter)


def insert_adapter(network: Network, folder: Path, stored: Stored) -> Any:
    """peft's model of the network, in float32, with the adapter that lies in `folder` in it.

    Raises `ModelRefused` where the adapter is damaged, or was made for another model.
    """
    _check_base(network, folder, stored)
    with _in_one_line(folder, network.module):
        return _insert(network.module.float(), folder, str(network.device))


def _insert(module: Any, folder: Path, device: str) -> Any:
    """The module with the adapter in it, after every tensor of the file was seen to have its place."""
    from peft import PeftModel

    adapted: Any = PeftModel.from_pretrained(module, str(folder), torch_device=device)
    said = adapted.load_adapter(str(folder), "default", torch_device=device)  # again, for what it says
    for names, what in (
        (said.unexpected_keys, "has {} tensors without a place in"),
        (said.missing_keys, "lacks {} of"),
    ):
        if names:
            raise ModelRefused(
                f"the adapter {what.format(len(names))} {type(module).__name__} (first: {_short(sorted(names)[0])}), "
                f"so it was made for another model. Give that one."
            )
    _refuse_tied(adapted)
    return adapted


def _refuse_tied(adapted: Any) -> None:
    """Refuse an update of a weight that two layers have: merged, it would change both."""
    from peft.tuners.tuners_utils import BaseTunerLayer

    shared = Counter(id(p) for _, p in adapted.named_parameters(remove_duplicate=False))
    for name, part in adapted.named_modules():
        base: Any = part.get_base_layer() if isinstance(part, BaseTunerLayer) else None
        if base is not None and any(shared[id(p)] > 1 for p in base.parameters(recurse=False)):
            raise ModelRefused(
                f"the adapter changes {_short(name)}, whose weight another layer has too, and merging would change "
                f"both. Untie them (tie_word_embeddings false) and save the model, then merge."
            )


def _check_base(network: Network, folder: Path, stored: Stored) -> None:
    """Refuse a base that is not the one that a manifest beside the adapter names, in whichever precision it was."""
    base = check_manifest(folder, lambda _: False).get("base") if (folder / MANIFEST).is_file() else None
    if base is not None and all(base != each for each in fingerprints(network, stored)):
        raise ModelRefused(
            f"{folder}: the adapter was made for another model: {MANIFEST} names another SHA-256 of its weights. "
            f"Give the model that it was made for."
        )


def fingerprints(network: Network, stored: Stored) -> Iterator[str]:
    """Of the weights as they are here, in the precisions of the file, and in float32."""
    yield network.fingerprint()
    for types in (stored, Stored(torch.float32)):
        yield digest_tensors(types.state(network.module))


@contextmanager
def _in_one_line(folder: Path, module: nn.Module) -> Iterator[None]:
    """Whatever peft says of an adapter that it cannot load, as a refusal; its warnings are heeded above."""
    from safetensors import SafetensorError

    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    except Refusal as refusal:
        raise ModelRefused(f"{folder}: {refusal}") from refusal
    except (
        AttributeError,
        ImportError,
        IndexError,
        KeyError,
        OSError,
        RuntimeError,
        SafetensorError,
        TypeError,
        ValueError,
    ) as error:
        if is_out_of_memory(error):
            raise
        raise ModelRefused(
            f"{folder}: the adapter cannot be loaded into {type(module).__name__} ({type(error).__name__}). "
            f"Restore the folder, and check that it was made for this model."
        ) from error


def _short(name: str) -> str:
    plain = name.removeprefix("base_model.model.")[:120]
    return "".join(letter if letter.isprintable() else "?" for letter in plain)
