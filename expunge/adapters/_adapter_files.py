"""Bounded adapters as files: what is written down about weights and base, and compared when they are loaded.

peft loads an adapter into any model that has some of its layers, and leaves those that the file lacks at 0. Here all of
it must fit: tensors, their sizes, and the base that the adapter was made for.
"""

from __future__ import annotations

import hashlib
import json
import re
import warnings
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from peft import PeftModel
from peft.tuners.tuners_utils import _filter_state_dict_by_key_prefixes, _get_tuner_state_dict_key_prefixes
from peft.utils import CONFIG_NAME, SAFETENSORS_WEIGHTS_NAME
from peft.utils.constants import EMBEDDING_LAYER_NAMES
from peft.utils.other import AuxiliaryTrainingWrapper
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from expunge.adapters import _base_sketch
from expunge.errors import ModelRefused, Refusal

if TYPE_CHECKING:
    from expunge.adapters._bounded_peft import BoundedConfig

ANYWAY = 'To load it all the same, set "{}" to null in adapter_config.json.'
TYPES = (torch.float64, torch.float32, torch.bfloat16, torch.float16)


def load_adapter(
    model: nn.Module, folder: str | Path, adapter_name: str = "default", is_trainable: bool = False
) -> PeftModel:
    """Load the bounded adapter in `folder` into `model`, a model of transformers or one that has adapters already.

    As `PeftModel.from_pretrained`, and `load_adapter` of a `PeftModel`, which make the same comparisons; here an
    adapter of another kind, and files that cannot be read, are refused in one line too. Raises `ModelRefused`; the
    model is then as it was, but that its parameters no longer ask for gradients.
    """
    folder = Path(folder)
    _read_kind(folder)
    try:
        if isinstance(model, PeftModel):
            model.load_adapter(str(folder), adapter_name, is_trainable=is_trainable)
            return model
        return PeftModel.from_pretrained(model, str(folder), adapter_name, is_trainable)
    except Refusal as refusal:
        raise ModelRefused(f"{folder}: {refusal}") from refusal
    except (AttributeError, KeyError, OSError, RuntimeError, SafetensorError, TypeError, ValueError) as error:
        raise ModelRefused(
            f"{folder}: the adapter cannot be loaded into {type(model).__name__} ({type(error).__name__}). "
            f"Restore the folder, and check that it was made for this model."
        ) from error


def _read_kind(folder: Path) -> None:
    """Refuse a folder without a bounded adapter in safetensors."""
    path = folder / CONFIG_NAME
    try:
        settings = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ModelRefused(f"{path} is not there. Give the folder of an adapter, such as OUT/adapter.") from error
    except (ValueError, RecursionError) as error:
        raise ModelRefused(f"{path} is not JSON. Restore the folder.") from error
    kind = settings.get("peft_type") if isinstance(settings, dict) else None
    if kind != "BOUNDED":
        raise ModelRefused(
            f"{path}: `peft_type` must be BOUNDED. Got {str(kind)[:40]!r}. Load adapters of other kinds by peft itself."
        )
    if not (folder / SAFETENSORS_WEIGHTS_NAME).is_file():
        raise ModelRefused(f"{folder / SAFETENSORS_WEIGHTS_NAME} is not there. Restore the folder.")


def describe_adapter(model: nn.Module, config: BoundedConfig, adapter_name: str, tensors: dict[str, Tensor]) -> None:
    """Write into the configuration what a loader compares: a digest of the weights, and a sketch of the base.

    `tensors` are the adapter's, by their names in the file; those of `modules_to_save` are read from the model.
    """
    whole = dict(tensors)
    for name, wrapper in _wrappers(model):
        inside = {
            key.removeprefix(f"{name}."): t for key, t in model.state_dict().items() if key.startswith(f"{name}.")
        }
        saved = wrapper.adapter_state_dict(adapter_name, inside)  # type: ignore[call-arg]  # the base class lacks it
        whole |= {f"{name}.{key}": tensor for key, tensor in saved.items()}
    config.written = {"digest": digest(whole, config), "base": _base_sketch.sketch(model)}


def digest(tensors: dict[str, Tensor], config: BoundedConfig) -> str | None:
    """SHA-256 over an adapter's tensors and the settings of its formula; None for tensors without values."""
    sha = hashlib.sha256(json.dumps(config.formula(), sort_keys=True).encode())
    for name, tensor in sorted(tensors.items()):
        if not _is_covered(name, config):
            continue
        if tensor.is_meta or type(tensor) not in (Tensor, nn.Parameter):
            return None
        sha.update(f"{name}:{tensor.dtype}:{tuple(tensor.shape)};".encode())
        sha.update(tensor.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy().data)
    return sha.hexdigest()


def check_file(folder: Path, config: BoundedConfig) -> None:
    """Refuse weights on this disk that are not those that were written with the configuration."""
    path = folder / SAFETENSORS_WEIGHTS_NAME
    if not path.is_file():  # on the hub, or in peft's older format: compared when loaded
        return
    try:
        tensors = load_file(path)
    except (SafetensorError, OSError, ValueError, RuntimeError, KeyError) as error:
        raise ModelRefused(f"{path} is damaged: it is no safetensors file. Restore the folder.") from error
    if config.modules_to_save and not any(_lies_in(name, config.modules_to_save) for name in tensors):
        raise ModelRefused(f"{path} has no weights of any of `modules_to_save`. Restore the folder.")
    _check_digest(tensors, config)


def check_base(model: nn.Module, config: BoundedConfig) -> None:
    """Refuse a model that is not the one an adapter's configuration was written for."""
    if config.base is None:
        return
    now = _base_sketch.sketch(model)
    if now is None:
        warnings.warn(
            "The base of the bounded adapter was not compared, as not all of its weights are in memory.",
            RuntimeWarning,
            stacklevel=2,
        )
    elif fault := _base_sketch.differ(config.base, now):
        raise ModelRefused(
            f"The adapter was made for another model than this {type(model).__name__}: {fault}. Load the model that it "
            f"was made for. {ANYWAY.format('base')}"
        )


def check_loaded(
    model: nn.Module, config: BoundedConfig, adapter_name: str, given: dict[str, Tensor], mapped: dict[str, Tensor]
) -> None:
    """Refuse what does not fit the model that it is about to be loaded into, or belongs to another.

    `given` are the tensors by their names in the file, `mapped` by those in the model.
    """
    own = _own_tensors(model, adapter_name)
    _check_digest(_with_saved(model, adapter_name, given), config)
    saved = {f"{name}.{key}" for name, wrapper in _wrappers(model) for key in _keys(wrapper, adapter_name).values()}
    unknown = sorted(key for key in mapped if key not in own and key not in saved and not _is_embedding(model, key))
    missing = sorted(own.keys() - mapped.keys())
    kind = type(model.get_base_model() if isinstance(model, PeftModel) else model).__name__
    if unknown:
        raise ModelRefused(
            f"The adapter has {len(unknown)} tensors that no layer of {kind} takes (first: {_short(unknown[0])}). "
            f"It was made for another model."
        )
    if missing:
        raise ModelRefused(
            f"The adapter has no weights for {len(missing)} tensors of the layers that it adapts in {kind} "
            f"(first: {_short(missing[0])}), which would stay as they are. It was made for another model."
        )
    for key, tensor in own.items():
        if mapped[key].shape != tensor.shape:
            raise ModelRefused(
                f"The adapter's {_short(key)} is {list(mapped[key].shape)}, and {kind} needs {list(tensor.shape)}. "
                f"It was made for another model."
            )
        if mapped[key].dtype not in TYPES or not (mapped[key].is_meta or torch.isfinite(mapped[key]).all()):
            raise ModelRefused(f"The adapter's {_short(key)} holds NaN, Inf or no real numbers. Restore the folder.")


def _check_digest(tensors: dict[str, Tensor], config: BoundedConfig) -> None:
    found = digest(tensors, config) if config.digest is not None else None
    if found is not None and found != config.digest:
        raise ModelRefused(
            f"The adapter's weights or settings were changed after they were written: their SHA-256 differs from "
            f"adapter_config.json. Restore the folder. {ANYWAY.format('digest')}"
        )


def _own_tensors(model: nn.Module, adapter_name: str) -> dict[str, Tensor]:
    prefixes = _get_tuner_state_dict_key_prefixes(model, adapter_name=adapter_name)
    tensors: dict[str, Tensor] = _filter_state_dict_by_key_prefixes(model.state_dict(), prefixes)
    return tensors


def _wrappers(model: nn.Module) -> list[tuple[str, AuxiliaryTrainingWrapper]]:
    """The modules that are trained whole."""
    return [(name, part) for name, part in model.named_modules() if isinstance(part, AuxiliaryTrainingWrapper)]


def _keys(wrapper: AuxiliaryTrainingWrapper, adapter_name: str) -> dict[str, str]:
    """Names of a wrapper's tensors, in the file and in the wrapper."""
    keys: dict[str, str] = wrapper.adapter_state_dict_load_map(adapter_name)
    return keys


def _with_saved(model: nn.Module, adapter_name: str, given: dict[str, Tensor]) -> dict[str, Tensor]:
    """All tensors by their names in the file; peft has renamed those of `modules_to_save` by now."""
    back = {
        f"{name}.{inside}": f"{name}.{key}"
        for name, wrapper in _wrappers(model)
        for key, inside in _keys(wrapper, adapter_name).items()
    }
    return {back.get(key, key): tensor for key, tensor in given.items()}


def _is_covered(name: str, config: BoundedConfig) -> bool:
    """Whether a tensor counts for the digest: an adapter's own or of `modules_to_save`, but no resized embedding."""
    whole = _lies_in(name, config.modules_to_save or ()) and not re.search(
        r"\.(original_module|modules_to_save)\.", name
    )
    return whole or ".bounded_" in name


def _lies_in(name: str, modules: Any) -> bool:
    return any(f".{module}." in f".{name}" for module in modules)


def _is_embedding(model: nn.Module, key: str) -> bool:
    """Whether a tensor is the base's own embedding, which peft saves along where it was resized."""
    owner = key.rpartition(".")[0]
    modules = dict(model.named_modules())
    known = owner in modules and key in model.state_dict()
    return known and (owner.rpartition(".")[2] in EMBEDDING_LAYER_NAMES or isinstance(modules[owner], nn.Embedding))


def _short(key: str) -> str:
    return "".join(letter if letter.isprintable() else "?" for letter in key.removeprefix("base_model.model.")[:120])
