"""Where a model comes from: a local folder, a GGUF file, or an id of the hub; checked before anything is loaded."""

from __future__ import annotations

import json
import os
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from expunge.core.errors import ModelRefused, UsageRefused

HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]{0,95}(/[A-Za-z0-9][\w.-]{0,95})?")
REVISION = re.compile(r"[\w./-]{1,128}")


@dataclass(frozen=True)
class Source:
    """A model's place: `name` is a folder or a hub id, `gguf` the file in that folder where it is one."""

    name: str
    revision: str | None = None
    gguf: str | None = None

    @property
    def local(self) -> bool:
        """Whether it lies on this machine's disk."""
        return Path(self.name).is_dir()

    @property
    def arguments(self) -> dict[str, Any]:
        """What every `from_pretrained` gets: never remote code."""
        given: dict[str, Any] = {"pretrained_model_name_or_path": self.name, "trust_remote_code": False}
        if self.revision:
            given["revision"] = self.revision
        return given


def locate(text: str) -> Source:
    """The source that a user typed: FOLDER, FILE.gguf, `org/name` or `org/name@revision`."""
    path = Path(text)
    if text.startswith("-") or "\0" in text or len(text) > 4096:
        raise UsageRefused("The model must be a folder, a .gguf file or a hub id such as org/name@revision.")
    if path.is_file() and path.suffix == ".gguf":
        return Source(str(path.parent), gguf=path.name)
    if path.is_dir():
        check_folder(path)
        return Source(str(path))
    name, _, revision = text.partition("@")
    if path.exists() or path.suffix == ".gguf" or text.startswith((".", "/", "~")) or not HUB_ID.fullmatch(name):
        raise UsageRefused(f"{text}: no such folder, and not a hub id such as org/name@revision.")
    if revision and not REVISION.fullmatch(revision):
        raise UsageRefused(f"{text}: '{revision}' is not a revision. Use a branch, a tag or a commit.")
    return Source(name, revision or None)


def check_folder(folder: Path) -> None:
    """Refuse a model folder with remote code, pickled weights, or files that point out of it."""
    config = read_json(folder / "config.json")
    if config.get("auto_map"):
        raise ModelRefused(f"{folder}: config.json asks for code of its own (auto_map). It is never run; remove it.")
    if "/" in str(config.get("_attn_implementation") or config.get("attn_implementation") or ""):
        raise ModelRefused(f"{folder}: config.json names an attention kernel to download. Remove that line.")
    for path in folder.rglob("*"):
        if path.is_symlink() and not path.resolve().is_relative_to(folder.resolve()):
            if "blobs" not in path.resolve().parts:  # the hub's own cache links to its blobs
                raise ModelRefused(f"{path}: links to a file outside the model's folder. Copy the file in.")
    _check_weights(folder)


def _check_weights(folder: Path) -> None:
    index = folder / "model.safetensors.index.json"
    if index.is_file():
        shards = set(read_json(index).get("weight_map", {}).values())
        outside = [name for name in shards if os.path.basename(str(name)) != name]
        if outside:
            raise ModelRefused(f"{index}: names '{outside[0]}', which is not a plain file name. Mend the index.")
        missing = sorted(name for name in shards if not (folder / name).is_file())
        if missing:
            raise ModelRefused(f"{folder}: shards are missing: {', '.join(missing)}. Fetch them.")
        return
    if (folder / "model.safetensors").is_file() or any(folder.glob("*.gguf")):
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
    except (UnicodeDecodeError, json.JSONDecodeError) as error:
        raise ModelRefused(f"{path} is not JSON. Fetch it again.") from error
    if not isinstance(value, dict):
        raise ModelRefused(f"{path} is not a JSON object. Fetch it again.")
    return value


def config_of(source: Source) -> Any:
    """The transformers configuration, fetched where the source is a hub id."""
    from transformers import AutoConfig

    gguf = {"gguf_file": source.gguf} if source.gguf else {}
    try:
        config = AutoConfig.from_pretrained(**source.arguments, **gguf)
    except (OSError, ValueError, KeyError, ImportError) as error:
        raise ModelRefused(_reason(source, error)) from error
    if getattr(config, "auto_map", None):
        raise ModelRefused(f"{source.name}: asks for code of its own (auto_map), which is never run.")
    return config


def load_module(source: Source, auto: Any, dtype: Any) -> Any:
    """The network by a transformers `Auto...` class: safetensors or GGUF only, non-finite weights refused."""
    import torch
    from transformers import GgufConfig

    kind: dict[str, Any] = {"use_safetensors": True}
    if source.gguf:
        kind = {"gguf_file": source.gguf, "quantization_config": GgufConfig(dequantize=True)}
    try:
        module = auto.from_pretrained(**source.arguments, dtype=dtype, **kind)
    except (OSError, ValueError, KeyError, RuntimeError, ImportError) as error:
        raise ModelRefused(_reason(source, error)) from error
    except Exception as error:  # safetensors raises a class of its own for a torn file
        raise ModelRefused(_reason(source, error)) from error
    broken = [name for name, p in module.named_parameters() if not torch.isfinite(p).all()]
    if broken:
        raise ModelRefused(f"{source.name}: {len(broken)} tensors hold NaN or Inf ({broken[0]}, ...). Fetch it again.")
    return module.requires_grad_(False).eval()


def _reason(source: Source, error: Exception) -> str:
    text = " ".join(str(error).split())
    where = source.name if source.local else f"{source.name} (not a folder here, so it was looked up on the hub)"
    return f"{where}: could not be loaded: {type(error).__name__}: {text[:300]}"
