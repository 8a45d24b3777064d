"""Bounded adapters as files: what is written down about weights and base, and compared when they are loaded.

peft loads an adapter into any model that has some of its layers, and leaves those that the file lacks at 0. Here all of
it must fit: tensors, their sizes, and the base that the adapter was made for.
"""

from __future__ import annotations

import json
import warnings
from pathlib import Path

import torch
from peft import PeftModel
from peft.tuners.tuners_utils import _filter_state_dict_by_key_prefixes, _get_tuner_state_dict_key_prefixes
from peft.utils import CONFIG_NAME, SAFETENSORS_WEIGHTS_NAME
from peft.utils.constants import EMBEDDING_LAYER_NAMES
from peft.utils.other import AuxiliaryTrainingWrapper
from safetensors import SafetensorError
from torch import Tensor, nn

from expunge.adapters._base_sketch import differ, sketch
from expunge.adapters._bounded_config import ANYWAY, BoundedConfig
from expunge.errors import ModelRefused, Refusal

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
    config.written = {"digest": config.digest_of(whole), "base": sketch(model)}


def check_base(model: nn.Module, config: BoundedConfig) -> None:
    """Refuse a model that is not the one an adapter's configuration was written for."""
    if config.base is None:
        return
    now = sketch(model)
    if now is None:
        warnings.warn(
            "The base of the bounded adapter was not compared, as not all of its weights are in memory.",
            RuntimeWarning,
            stacklevel=2,
        )
    elif fault := differ(config.base, now):
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
    config.check_digest(_with_saved(model, adapter_name, given))
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


def _is_embedding(model: nn.Module, key: str) -> bool:
    """Whether a tensor is the base's own embedding, which peft saves along where it was resized."""
    owner = key.rpartition(".")[0]
    modules = dict(model.named_modules())
    known = owner in modules and key in model.state_dict()
    return known and (owner.rpartition(".")[2] in EMBEDDING_LAYER_NAMES or isinstance(modules[owner], nn.Embedding))


def _short(key: str) -> str:
    return "".join(letter if letter.isprintable() else "?" for letter in key.removeprefix("base_model.model.")[:120])
