"""Where a model comes from: a local folder, a GGUF file, or an id of the hub; checked before anything is loaded."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from expunge.errors import ModelRefused, UsageRefused

HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]{0,95}(/[A-Za-z0-9][\w.-]{0,95})?")
LONGEST_HEADER = 100 << 20
"""Bytes of a safetensors header at most, as the format has it."""
PATIENCE = 8.0
"""Seconds that the hub has to answer."""
LAYERS = re.compile(r"(num|n)_(hidden_)?(layers?|blocks)|depth|num_(en|de)coder_layers|(en|de)coder_layers")
"""Settings that count layers, by their names in configurations."""
MOST_LAYERS = 10_000
WRAPPERS = ("gemma3", "gemma4", "llava", "qwen3_5")
"""Models that read images too and whose language model answers texts as they do, by their `model_type`."""
INSIDE = {r"^(model\.)?language_model\.(model\.)?(?!lm_head)": "model.", r"^language_model\.lm_head": "lm_head"}
"""From the names of a language model's tensors inside of such a model to their own."""
BESIDE = re.compile(r"vision|visual|audio|multi_modal|^mtp")
"""Names of the tensors beside it."""
REVISION = re.compile(r"[\w./-]{1,128}")


@dataclass(frozen=True)
class Source:
    """Where a model is: `name` is a folder or a hub id, `gguf` a file in that folder."""

    name: str
    revision: str | None = None
    gguf: str | None = None
    dtype: str | None = None
    """Precision that a network of it is written in, and held in but on a CPU, such as bfloat16; None: the file's."""

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
    """The source that a user typed: FOLDER, FILE.gguf, `org/name` or `org/name@revision`.

    The folder of a finished run stands for the model in it.
    """
    path = Path(text)
    if text.startswith("-") or not text.isprintable() or not text.strip() or _too_long(path):
        raise UsageRefused("The model must be a folder, a .gguf file or a hub id such as org/name@revision.")
    if path.is_file() and path.suffix == ".gguf":
        return Source(str(path.parent), gguf=path.name)
    if path.is_dir():
        path = _model_in(path)
        check_folder(path)
        return Source(str(path))
    name, _, revision = text.partition("@")
    if path.exists() or path.suffix == ".gguf" or text.startswith((".", "/", "~")) or not HUB_ID.fullmatch(name):
        raise UsageRefused(f"{text}: no such folder, and not a hub id such as org/name@revision.")
    if revision and (not REVISION.fullmatch(revision) or ".." in revision):
        raise UsageRefused(f"{text}: '{revision}' is not a revision. Use a branch, a tag or a commit.")
    return Source(name, revision or None)


def _model_in(folder: Path) -> Path:
    """`OUT/model` of OUT, which `train` or `forget` wrote; of any other folder that folder."""
    inside = folder / "model"
    return inside if (inside / "config.json").is_file() and not (folder / "config.json").is_file() else folder


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
    if (folder / "adapter_config.json").exists() and not (folder / "config.json").is_file():
        raise ModelRefused(
            f"{folder}: holds an adapter, not a model. Give the model that it was made for, and --adapter {folder}."
        )
    for config in nested_configs(read_json(folder / "config.json")):
        if config.get("quantization_config"):
            raise ModelRefused(_say_quantized(str(folder), config["quantization_config"]))
        _check_layers(folder, config)
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


def _say_quantized(name: str, settings: Any) -> str:
    method = str(settings.get("quant_method") or "") if isinstance(settings, dict) else ""
    called = f" ({method})" if re.fullmatch(r"[\w-]{1,40}", method) else ""
    return (
        f"{name}: its weights are quantized{called}, and rounding them again would undo small changes. Give the model "
        f"that it was made from; or load it with transformers, call dequantize() and save_pretrained, and give that."
    )


def _check_layers(folder: Path, config: dict[str, Any]) -> None:
    """Refuse numbers of layers that no model has; transformers would build one without any, or run out of memory."""
    for key, value in config.items():
        if LAYERS.fullmatch(key) and value is not None and not _plausible(value):
            shown = str(value)[:20]
            raise ModelRefused(f"{folder}: config.json says {key} {shown}; allowed: 1 to {MOST_LAYERS}. Fetch it.")


def _plausible(value: object) -> bool:
    if isinstance(value, list):  # a number for each stage
        return bool(value) and all(map(_plausible, value))
    return isinstance(value, int) and not isinstance(value, bool) and 1 <= value <= MOST_LAYERS


def nested_configs(config: dict[str, Any]) -> list[dict[str, Any]]:
    """A configuration and those inside it, such as a text model's."""
    inside = [value for value in config.values() if isinstance(value, dict)]
    return [config, *(deeper for value in inside for deeper in nested_configs(value))]


def _check_weights(folder: Path) -> None:
    index = folder / "model.safetensors.index.json"
    if (folder / "model.safetensors").is_file():
        return  # transformers reads a whole file and no index beside it
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


def _configurations() -> Any:
    """transformers' reader of configurations, told of the networks of ours; transformers takes seconds to import."""
    from transformers import AutoConfig

    from expunge.models.cifar_resnet import register

    register()
    return AutoConfig


def config_of(source: Source) -> Any:
    """The transformers configuration, fetched where the source is a hub id."""
    gguf = {"gguf_file": source.gguf} if source.gguf else {}
    if not source.local:
        _look_up(source)
    try:
        config = _configurations().from_pretrained(**source.arguments, **gguf)
    except Exception as error:  # configurations are third-party files, and each class checks them in its own way
        raise ModelRefused(_reason(source, error)) from error
    if getattr(config, "auto_map", None):
        raise ModelRefused(f"{source.name}: asks for code of its own (auto_map), which is never run.")
    if getattr(config, "quantization_config", None) and not source.gguf:
        raise ModelRefused(_say_quantized(source.name, config.quantization_config))
    config = language_part(config) or config
    named = config.architectures or []
    if not isinstance(named, list) or not all(isinstance(name, str) for name in named):
        raise ModelRefused(f"{source.name}: 'architectures' of config.json must be a list of names. Fetch it again.")
    return config


def language_part(config: Any) -> Any:
    """The configuration of the language model inside of one that reads images too; None of any other model."""
    from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

    named = config.architectures if isinstance(config.architectures, list) else []
    if config.model_type not in WRAPPERS or not any(str(name).endswith("ForConditionalGeneration") for name in named):
        return None
    part = config.get_text_config()
    part.architectures = [MODEL_FOR_CAUSAL_LM_MAPPING_NAMES[part.model_type]]
    return part


def say_left_out(text: str) -> str:
    """What is not read of the model that a user typed, in a sentence; empty where all of it is."""
    source = locate(text)
    composed = source.local and not (Path(source.name) / "config.json").is_file()
    whole = None if source.gguf or composed else _configurations().from_pretrained(**source.arguments)
    if whole is None or language_part(whole) is None:
        return ""
    return f"Of the {whole.architectures[0]} its language model is read, and written: not what reads images"


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


@contextmanager
def without_bars() -> Iterator[None]:
    """Within the block transformers draws no progress bar; who has asked for its bars has them again afterwards."""
    from transformers.utils import logging

    drawn = logging.is_progress_bar_enabled()
    if drawn:
        logging.disable_progress_bar()
    try:
        yield
    finally:
        if drawn:
            logging.enable_progress_bar()


def load_module(source: Source, auto: Any, dtype: Any) -> Any:
    """The network by a transformers `Auto...` class: safetensors or GGUF only, non-finite weights refused.

    Tensors that the configuration has no place for are refused, since they would be left out; but for those beside the
    language model, where that alone is read.
    """
    import torch
    from transformers import AutoConfig, GgufConfig

    kind: dict[str, Any] = {"use_safetensors": True, "ignore_mismatched_sizes": True}  # refused below, by name
    if source.gguf:
        kind = {"gguf_file": source.gguf, "quantization_config": GgufConfig(dequantize=True)}
    part = None if source.gguf else language_part(AutoConfig.from_pretrained(**source.arguments))
    if part is not None:
        kind |= {"config": part, "key_mapping": INSIDE}
    try:
        with without_bars():
            module, info = auto.from_pretrained(**source.arguments, dtype=dtype, output_loading_info=True, **kind)
    except Exception as error:  # safetensors has an error class of its own
        raise ModelRefused(_reason(source, error)) from error
    if misfits := sorted(info["mismatched_keys"]):
        name, has, needs = misfits[0]
        raise ModelRefused(
            f"{source.name}: {len(misfits)} tensors have another shape than config.json says (first: {name[:80]}, "
            f"{list(has)} for {list(needs)}). Fetch config.json and the weights again, from one place."
        )
    missing = sorted(info["missing_keys"])
    if missing:  # transformers would initialise them at random
        raise ModelRefused(f"{source.name}: {len(missing)} tensors are missing ({missing[0]}, ...). Fetch it again.")
    idle = sorted(name for name in info["unexpected_keys"] if part is None or not BESIDE.search(name))
    if idle:
        raise ModelRefused(
            f"{source.name}: {len(idle)} tensors of the file have no place in the model that config.json describes "
            f"({idle[0][:80]}, ...), and would be left out. Fetch config.json again, or save the model anew."
        )
    broken = [name for name, p in module.named_parameters() if not torch.isfinite(p).all()]
    if broken:
        raise ModelRefused(f"{source.name}: {len(broken)} tensors hold NaN or Inf ({broken[0]}, ...). Fetch it again.")
    if part is not None:
        vars(module).pop("_weight_conversions", None)  # by which transformers would write the names inside of the whole
    return module.requires_grad_(False).eval()


def _reason(source: Source, error: Exception) -> str:
    text = " ".join(str(error).split())
    where = source.name if source.local else f"{source.name} (not a folder here, so it was looked up on the hub)"
    return f"{where}: could not be loaded: {type(error).__name__}: {text[:300]}"


def config_text(config: Any) -> str:
    """A configuration as text, without the keys that no answer depends on."""
    passing = ("_name_or_path", "transformers_version", "use_cache")
    facts = {} if config is None else {k: v for k, v in config.to_dict().items() if k not in passing}
    return json.dumps(facts, sort_keys=True, default=str)
