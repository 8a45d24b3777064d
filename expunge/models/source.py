"""Where a model comes from: a local folder, a GGUF file, or an id of the hub; checked before anything is loaded."""

from __future__ import annotations

import json
import re
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from expunge.errors import ModelRefused, UsageRefused

HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]{0,95}(/[A-Za-z0-9][\w.-]{0,95})?")
LONGEST_HEADER = 100 << 20
"""Bytes of a safetensors header at most, as the format has it."""
PATIENCE = 8.0
"""Seconds that the hub has to answer."""
REVISION = re.compile(r"[\w./-]{1,128}")


@dataclass(frozen=True)
class Source:
    """Where a model is: `name` is a folder or a hub id, `gguf` a file in that folder."""

    name: str
    revision: str | None = None
    gguf: str | None = None

    @property
    def local(self) -> bool:
        """Whether it is on this machine's disk."""
        return Path(self.name).is_dir()

    @property
    def arguments(self) -> dict[str, Any]:
        """Arguments of every `from_pretrained` call: never remote code."""
        given: dict[str, Any] = {"pretrained_model_name_or_path": self.name, "trust_remote_code": False}
        if self.revision:
            given["revision"] = self.revision
        return given


def locate(text: str) -> Source:
    """The source that a user typed: FOLDER, FILE.gguf, `org/name` or `org/name@revision`."""
    path = Path(text)
    if text.startswith("-") or not text.isprintable() or not text.strip() or _too_long(path):
        raise UsageRefused("The model must be a folder, a .gguf file or a hub id such as org/name@revision.")
    if path.is_file() and path.suffix == ".gguf":
        return Source(str(path.parent), gguf=path.name)
    if path.is_dir():
        check_folder(path)
        return Source(str(path))
    name, _, revision = text.partition("@")
    if path.exists() or path.suffix == ".gguf" or text.startswith((".", "/", "~")) or not HUB_ID.fullmatch(name):
        raise UsageRefused(f"{text}: no such folder, and not a hub id such as org/name@revision.")
    if revision and (not REVISION.fullmatch(revision) or ".." in revision):
        raise UsageRefused(f"{text}: '{revision}' is not a revision. Use a branch, a tag or a commit.")
    return Source(name, revision or None)


def _too_long(path: Path) -> bool:
    try:
        path.exists()
    except OSError:  # a name longer than file systems allow
        return True
    return False


def check_folder(folder: Path) -> None:
    """Refuse a model folder with remote code, pickled weights, or links that lead out of it."""
    if not (folder / "config.json").is_file() and any(folder.glob("*.gguf")):
        raise ModelRefused(f"{folder}: holds GGUF files, of which one must be named. Give {folder}/FILE.gguf.")
    for config in _nested_configs(read_json(folder / "config.json")):
        if config.get("auto_map"):
            raise ModelRefused(f"{folder}: config.json asks for code of its own (auto_map), never run. Remove it.")
        if any("/" in str(config.get(key) or "") for key in ("_attn_implementation", "attn_implementation")):
            raise ModelRefused(f"{folder}: config.json names an attention kernel to download. Remove that line.")
    if (folder / "adapter_config.json").exists():  # transformers would load the base that it names instead
        raise ModelRefused(f"{folder}: holds an adapter (adapter_config.json) beside a model. Merge it or move it out.")
    cache = folder.resolve().parent
    # A snapshot of the hub's own cache links to the blobs beside it.
    allowed = [folder.resolve(), *([cache.parent / "blobs"] if cache.name == "snapshots" else [])]
    for path in folder.rglob("*"):
        if path.is_symlink() and not any(_target(path).is_relative_to(place) for place in allowed):
            raise ModelRefused(f"{path}: links to a file outside the model's folder. Copy the file in.")
    _check_weights(folder)
    for path in sorted(folder.glob("*.safetensors")):
        _refuse_twins(path)


def _target(link: Path) -> Path:
    try:
        return link.resolve(strict=True)
    except (OSError, RuntimeError) as error:
        raise ModelRefused(f"{link}: is a link that leads to nothing, or to itself. Copy the file in.") from error


def _refuse_twins(path: Path) -> None:
    """Refuse weights with two tensors of one name: readers take one or the other. What else is wrong, they say."""

    def once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        if len(dict(pairs)) < len(pairs):
            raise ModelRefused(f"{path}: its header names a tensor, or a part of one, twice. Fetch it again.")
        return dict(pairs)

    with path.open("rb") as file, suppress(ValueError, RecursionError, OverflowError):
        length = int.from_bytes(file.read(8), "little")
        json.loads(file.read(length) if length <= LONGEST_HEADER else b"{}", object_pairs_hook=once)


def _nested_configs(config: dict[str, Any]) -> list[dict[str, Any]]:
    """A configuration and those inside it, such as a text model's."""
    inside = [value for value in config.values() if isinstance(value, dict)]
    return [config, *(deeper for value in inside for deeper in _nested_configs(value))]


def _check_weights(folder: Path) -> None:
    index = folder / "model.safetensors.index.json"
    if index.is_file():
        named = read_json(index).get("weight_map")
        shards = set(map(str, named.values())) if isinstance(named, dict) else set()
        if not shards:
            raise ModelRefused(f"{index}: names no shards. Fetch it again.")
        outside = sorted(name for name in shards if not re.fullmatch(r"[^/\\]+\.safetensors", name))
        if outside:
            raise ModelRefused(f"{index}: names '{outside[0]}', which is no plain .safetensors file. Fix the index.")
        missing = sorted(name for name in shards if not (folder / name).is_file())
        if missing:
            raise ModelRefused(f"{folder}: shards are missing: {', '.join(missing)}. Fetch them.")
        return
    if (folder / "model.safetensors").is_file():
        return
    if any(folder.glob("*.bin")) or any(folder.glob("*.pt")):
        raise ModelRefused(
            f"{folder}: holds pickled weights only, which can run code when read. Convert them on a machine you trust: "
            f"load with transformers and call save_pretrained, which writes safetensors."
        )
    raise ModelRefused(f"{folder}: no model.safetensors in it. Give a transformers folder.")


def read_json(path: Path) -> dict[str, Any]:
    """A JSON object, or a refusal that names the file."""
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise ModelRefused(f"{path} is not there. Give a transformers folder.") from error
    except (OSError, ValueError, RecursionError) as error:
        raise ModelRefused(f"{path} is not JSON. Fetch it again.") from error
    if not isinstance(value, dict):
        raise ModelRefused(f"{path} is not a JSON object. Fetch it again.")
    return value


def config_of(source: Source) -> Any:
    """The transformers configuration, fetched where the source is a hub id."""
    from transformers import AutoConfig

    gguf = {"gguf_file": source.gguf} if source.gguf else {}
    if not source.local:
        _look_up(source)
    try:
        config = AutoConfig.from_pretrained(**source.arguments, **gguf)
    except Exception as error:  # configurations are third-party files, and each class checks them in its own way
        raise ModelRefused(_reason(source, error)) from error
    if getattr(config, "auto_map", None):
        raise ModelRefused(f"{source.name}: asks for code of its own (auto_map), which is never run.")
    named = config.architectures or []
    if not isinstance(named, list) or not all(isinstance(name, str) for name in named):
        raise ModelRefused(f"{source.name}: 'architectures' of config.json must be a list of names. Fetch it again.")
    return config


def _look_up(source: Source) -> None:
    """Look a name up on the hub once, for a few seconds: transformers would try again for half a minute."""
    from huggingface_hub import get_hf_file_metadata, hf_hub_url, try_to_load_from_cache

    if isinstance(try_to_load_from_cache(source.name, "config.json", revision=source.revision), str):
        return
    try:
        get_hf_file_metadata(hf_hub_url(source.name, "config.json", revision=source.revision), timeout=PATIENCE)
    except Exception as error:  # network errors and HTTP errors alike
        raise ModelRefused(
            f"{source.name}: there is no such folder here, and the hub has no such model or was not reached "
            f"({type(error).__name__}). Give a folder, or a hub id such as org/name."
        ) from error


def refuse_adapted(module: Any) -> Any:
    """`module`; raises `UsageRefused` where an adapter is still in it, since the saved folder would not load."""
    inside = (getattr(part, "parametrizations", None) for part in module.modules())
    if hasattr(module, "peft_config") or any(each is not None for each in inside):
        raise UsageRefused("This network still has its adapter. Save adapter.merge(network).")
    return module


def load_module(source: Source, auto: Any, dtype: Any) -> Any:
    """The network by a transformers `Auto...` class: safetensors or GGUF only, non-finite weights refused."""
    import torch
    from transformers import GgufConfig

    kind: dict[str, Any] = {"use_safetensors": True}
    if source.gguf:
        kind = {"gguf_file": source.gguf, "quantization_config": GgufConfig(dequantize=True)}
    try:
        module, info = auto.from_pretrained(**source.arguments, dtype=dtype, output_loading_info=True, **kind)
    except Exception as error:  # safetensors has an error class of its own
        raise ModelRefused(_reason(source, error)) from error
    missing = sorted(info["missing_keys"])
    if missing:  # transformers would initialise them at random
        raise ModelRefused(f"{source.name}: {len(missing)} tensors are missing ({missing[0]}, ...). Fetch it again.")
    broken = [name for name, p in module.named_parameters() if not torch.isfinite(p).all()]
    if broken:
        raise ModelRefused(f"{source.name}: {len(broken)} tensors hold NaN or Inf ({broken[0]}, ...). Fetch it again.")
    return module.requires_grad_(False).eval()


def _reason(source: Source, error: Exception) -> str:
    text = " ".join(str(error).split())
    where = source.name if source.local else f"{source.name} (not a folder here, so it was looked up on the hub)"
    return f"{where}: could not be loaded: {type(error).__name__}: {text[:300]}"


def stored_dtype(source: Source, config: Any) -> Any:
    """The torch precision that most of the weights' numbers are in, by the headers of the safetensors files; the
    configuration's where there is no file."""
    import torch

    known = {"F64": torch.float64, "F32": torch.float32, "BF16": torch.bfloat16, "F16": torch.float16}
    counts: dict[str, int] = {}
    for path in sorted(Path(source.name).glob("*.safetensors")) if source.local else ():
        for tensor in _header(path).values():
            start, end = tensor["data_offsets"]
            counts[tensor["dtype"]] = counts.get(tensor["dtype"], 0) + end - start
    if counts:
        return known.get(max(counts, key=counts.__getitem__), torch.bfloat16)
    named = getattr(config, "dtype", None)
    return named if isinstance(named, torch.dtype) else torch.float32


def _header(path: Path) -> dict[str, Any]:
    """The names, types and places of a safetensors file's tensors."""
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


def config_text(config: Any) -> str:
    """A configuration as text, without the keys that no answer depends on."""
    passing = ("_name_or_path", "transformers_version", "use_cache")
    facts = {} if config is None else {k: v for k, v in config.to_dict().items() if k not in passing}
    return json.dumps(facts, sort_keys=True, default=str)
